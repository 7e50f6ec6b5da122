"""Handwritten digits, 8x8 pixels, that come with scikit-learn: no download."""

from trainers.recipe import Recipe


def cnn() -> Recipe:
    """The linear CNN with 8/16/32 filters on scikit-learn's 1,797 digits.

    Source: the network of MathWorks' "Create Simple Deep Learning Neural Network for Classification".
    Parameters: 7,290
    Expected: val accuracy 0.98
    Command: python -m trainers train digits.cnn
    """
    return Recipe(
        dataset="digits",
        model="linear_cnn",
        image_size=(8, 8),
        epochs=30,
        batch_size=64,
        lr=0.05,
        schedule="cosine",
        warmup_share=1 / 30,
        weight_decay=5e-4,
    )
