"""ERFNet on Cityscapes, trained in two stages: the encoder on masks at 1/8 of the size, then all of it."""

from trainers.recipe import Recipe


def encoder() -> Recipe:
    """ERFNet's encoder on Cityscapes.

    Source: Romera et al., ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic Segmentation, IEEE T-ITS
    2018; class weights 1 / ln(1.02 + share): Paszke et al., ENet, 2016, section 5.2.
    Parameters: 1,876,495 (19 classes)
    Expected: not measured here
    Command: python -m trainers train erfnet.encoder erfnet.decoder --data PATH
    """
    return Recipe(
        dataset="cityscapes",
        model="erfnet",
        model_args={"stage": "encoder"},
        task="segment",
        task_args={"stride": 8},
        image_size=(512, 1024),
        resize="stretch",
        epochs=150,
        batch_size=6,
        optimizer="adam",
        lr=5e-4,
        weight_decay=1e-4,
        schedule="polynomial",
        schedule_args={"power": 0.9},
        class_weights="erfnet",
        augment={"horizontal_flip": 0.5, "translate": 0.004},
    )


def decoder() -> Recipe:
    """ERFNet on Cityscapes, its encoder as `erfnet.encoder` has left it (which is trained first, if need be).

    Source: Romera et al., ERFNet, IEEE T-ITS 2018: the encoder alone first, then encoder and decoder.
    Parameters: 2,064,191 (19 classes)
    Expected: val miou 0.70 (the authors' figure, not measured here)
    Command: python -m trainers train erfnet.decoder --data PATH
    """
    return encoder().replace(model_args={"stage": "decoder"}, task_args={"stride": 1}, init_from="erfnet.encoder")
