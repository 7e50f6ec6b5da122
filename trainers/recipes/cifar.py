"""CIFAR-10: 60,000 colour photographs of 32x32 pixels (Krizhevsky 2009)."""

from trainers.recipe import Recipe


def r18() -> Recipe:
    """ResNet-18 with a 3x3 stem on CIFAR-10.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2 (training: crops of
    the picture padded by 4, flips); the ResNet-18 with a 3x3 stem is the usual form for 32x32 pictures.
    Parameters: 11,173,962
    Expected: test accuracy 0.95 (not measured here)
    Command: python -m trainers train cifar.r18 --data PATH
    """
    return Recipe(
        dataset="cifar10",
        model="resnet",
        model_args={"depth": 18, "stem": "3x3"},
        image_size=(32, 32),
        epochs=200,
        batch_size=128,
        lr=0.1,
        weight_decay=5e-4,
        schedule="cosine",
        warmup_share=1 / 200,
        augment={"horizontal_flip": 0.5, "pad": 4},
    )
