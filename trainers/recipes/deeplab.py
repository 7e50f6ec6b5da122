"""DeepLabv3+ with a ResNet-18."""

from trainers.recipe import Recipe


def camvid() -> Recipe:
    """DeepLabv3+ on CamVid, 11 classes, as in MATLAB's example; --model-args weights=imagenet starts from ImageNet.

    Source: Chen et al., Encoder-Decoder with Atrous Separable Convolution, ECCV 2018; settings of MathWorks, "Semantic
    Segmentation Using Deep Learning"; median-frequency weights: Eigen and Fergus, ICCV 2015, section 6.3.2.
    Parameters: 16,605,355 (11 classes)
    Expected: val miou 0.31 on a third of CamVid at 96x128, without ImageNet's weights
    Command: python -m trainers train deeplab.camvid --data PATH
    """
    return Recipe(
        dataset="camvid",
        model="deeplabv3plus",
        task="segment",
        image_size=(360, 480),
        resize="stretch",
        epochs=30,
        batch_size=8,
        lr=0.003,
        momentum=0.9,
        weight_decay=0.005,
        schedule="step",
        schedule_args={"every": 10, "factor": 0.3},
        class_weights="median",
        augment={"horizontal_flip": 0.5, "translate": 0.02},
    )
