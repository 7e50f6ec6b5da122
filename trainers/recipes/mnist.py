"""Handwritten digits, 28x28 pixels (LeCun et al. 1998)."""

from trainers.recipe import Recipe


def cnn() -> Recipe:
    """The linear CNN with 8/16/32 filters on MNIST.

    Source: the network of MathWorks' "Create Simple Deep Learning Neural Network for Classification".
    Parameters: 21,690
    Expected: test accuracy 0.99 after 5 epochs
    Command: python -m trainers train mnist.cnn --data PATH
    """
    return Recipe(
        dataset="mnist",
        model="linear_cnn",
        image_size=(28, 28),
        epochs=5,
        batch_size=128,
        lr=0.1,
        schedule="cosine",
        warmup_share=0.04,
        weight_decay=5e-4,
    )
