"""Small data sets that need no download: `digits` and `synthetic`."""

from typing import Any

import numpy as np

from jaxattn.data.source import ArraySource, Data, labelled
from jaxattn.data.splits import stratified_split, take
from jaxattn.errors import require


def load_digits(name: str, *, image_size: int = 32) -> Data:
    """Loads the handwritten digits that come with scikit-learn.

    1,797 grey images of 8 x 8 pixels, of which a fifth, by class, is the test split.

    Args:
        name: What the data set is called.
        image_size: Height and width in pixels that the images are scaled to.
    """
    from PIL import Image
    from sklearn import datasets

    _require_sizes(image_size=image_size)
    bunch: Any = datasets.load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)

    size = (image_size, image_size)
    images = np.empty((len(grey), *size, 3), np.uint8)  # fails at once if too large
    for image, digit in zip(images, grey, strict=True):
        resized = Image.fromarray(digit).resize(size, Image.Resampling.BILINEAR)
        image[:] = np.asarray(resized)[..., None]
    digits = labelled(images, bunch.target.astype(np.int32))
    # The test set is part of the data set's definition, so its seed is constant.
    train, test = stratified_split(digits.labels, 0.2, seed=0)
    return Data(
        name=name,
        train=take(digits, train),
        val=None,
        test=take(digits, test),
        class_names=tuple("0123456789"),
        image_shape=(image_size, image_size, 3),
    )


def load_synthetic(
    name: str,
    *,
    image_size: int = 32,
    num_train: int = 1024,
    num_test: int = 256,
    num_classes: int = 10,
) -> Data:
    """Makes random images that can be learned, the same ones every time.

    Args:
        name: What the data set is called.
        image_size: Their height and width in pixels.
        num_train: The number of training examples.
        num_test: The number of test examples.
        num_classes: The number of classes.
    """
    _require_sizes(
        image_size=image_size,
        num_train=num_train,
        num_test=num_test,
        num_classes=num_classes,
    )
    rng = np.random.default_rng(0)
    # A class is a coarse 4x4 pattern of colours; noise of 48 cannot wrap around.
    patterns = rng.integers(64, 192, (num_classes, 4, 4, 3), dtype=np.int16)
    cell = np.arange(image_size) * 4 // image_size
    patterns = patterns[:, cell][:, :, cell]

    def split(num_examples: int) -> ArraySource:
        labels = rng.permutation(num_examples).astype(np.int32) % num_classes
        shape = (num_examples, image_size, image_size, 3)
        noise = rng.integers(-48, 49, shape, dtype=np.int16)
        return labelled((patterns[labels] + noise).astype(np.uint8), labels)

    return Data(
        name=name,
        train=split(num_train),
        val=None,
        test=split(num_test),
        class_names=tuple(str(i) for i in range(num_classes)),
        image_shape=(image_size, image_size, 3),
    )


def _require_sizes(**sizes: int) -> None:
    for key, value in sizes.items():
        require(f"data.{key}", value, value >= 1, "at least 1")
