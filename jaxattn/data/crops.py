"""Encoded images of many sizes, decoded and cropped to one size when asked for.

They come from files, or encoded from any other collection (`Files`). What is shown of
an image is torchvision's rule, `Crops`: `Resize(resize_px)` and
`CenterCrop(image_size)` in evaluation, `RandomResizedCrop` in training, by Pillow:
bilinear, with antialiasing.

Deviations: pixels beside a random crop count where the filter reaches over its edge,
as torchvision cuts first; and a JPEG of which a random crop is to shrink by 2 or more
is decoded at a fraction of its size.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxattn.data.images import Box, read_crop
from jaxattn.data.preprocess import Frame
from jaxattn.data.source import Example, Source, skip_bad_images
from jaxattn.errors import choose, require

# Those of ImageNet recipes.
_IMAGE_SIZE_PX, _RESIZE_PX = 224, 256
_MAX_IMAGE_SIZE_PX = 10_000  # an image of more than 0.3 GB fills the memory

# Attempts of torchvision's `RandomResizedCrop`.
_MAX_ATTEMPTS = 10


class File(NamedTuple):
    """An encoded image, its class, and what errors call it."""

    content: str | bytes  # a path, or what a file would hold
    label: int
    origin: str


class Files(Protocol):
    """Encoded images that can be had by position."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def __getitem__(self, index: int) -> File:
        """The image at a position in `[0, len)`."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 `[N]`."""
        ...


@dataclasses.dataclass(frozen=True)
class Crops:
    """What is shown of an image.

    Attributes:
        image_size: Height and width in pixels of what is shown.
        resize_px: The shorter side in pixels that an image is scaled to in evaluation,
            before its centre is cropped; at least `image_size`. By default 256/224 of
            `image_size`, rounded.
        scale: Smallest and largest share of the area that a random crop takes, in
            (0, 1]. A smallest share of 1 leaves nothing to draw and turns random crops
            off: training images are then shown as in evaluation.
        ratio: Smallest and largest width / height of a random crop.

    Raises:
        UserError: If a value is out of its range.
    """

    image_size: int = _IMAGE_SIZE_PX
    resize_px: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        size, resized = self.image_size, self.resize_px
        fits = 1 <= size <= _MAX_IMAGE_SIZE_PX
        require("data.image_size", size, fits, f"from 1 to {_MAX_IMAGE_SIZE_PX:,}")
        require(
            "data.resize_px",
            resized,
            resized is None or resized >= size,
            f"at least data.image_size={size}",
        )
        _check_range("data.crop_scale", self.scale, 1.0)
        _check_range("data.crop_ratio", self.ratio, math.inf)

    @property
    def is_random(self) -> bool:
        """Whether training images are cropped at random."""
        return self.scale[0] < 1

    @property
    def frame(self) -> Frame:
        """What evaluation shows of an image."""
        size, resize_px = self.image_size, self.resize_px
        if resize_px is None:
            resize_px = round(size * _RESIZE_PX / _IMAGE_SIZE_PX)
        return Frame((size, size, 3), resize_px)

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Box:
        """Draws what training shows of an image, a rectangle of whole pixels."""
        log_ratio = np.log(self.ratio)
        for _ in range(_MAX_ATTEMPTS):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(*log_ratio))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(rng.integers(height - h + 1))
                left = int(rng.integers(width - w + 1))
                return left, top, left + w, top + h
        return self._largest(height, width)

    def _largest(self, height: int, width: int) -> Box:
        """The centre of an image, as much of it as the ratio allows."""
        smallest, largest = self.ratio
        w = min(width, max(1, round(height * largest)))
        h = min(height, max(1, round(width / smallest)))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


@dataclasses.dataclass(frozen=True, eq=False)
class CroppedImages:
    """Encoded images as a source, shown as in evaluation.

    Attributes:
        files: Where they come from.
        crops: What is shown of each.
    """

    files: Files
    crops: Crops

    def __len__(self) -> int:
        """The number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        """The centre of the image at a position, uint8 `[S, S, 3]`."""
        file = self.files[index]
        image = self.crops.frame.read(file.content, origin=file.origin)
        return {"image": image, "label": file.label}

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 `[N]`, without decoding an image."""
        return self.files.labels


class RandomlyCroppedImages(CroppedImages):
    """Encoded images as a source of training examples."""

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """A random crop of the image at a position, uint8 `[S, S, 3]`."""
        file, crops = self.files[index], self.crops

        def choose_box(height: int, width: int) -> Box:
            return crops.draw(rng, height, width)

        image = read_crop(
            file.content, choose_box, crops.image_size, origin=file.origin, reduce=True
        )
        return {"image": image, "label": file.label}


def make_crops(
    image_size: int | None,
    resize_px: int | None,
    crop_scale: Sequence[float] | None,
    crop_ratio: Sequence[float] | None,
) -> Crops:
    """Returns `Crops` of a config's keys; None is the default of each.

    Raises:
        UserError: If a value is out of its range.
    """
    values = {
        "image_size": image_size,
        "resize_px": resize_px,
        "scale": crop_scale,
        "ratio": crop_ratio,
    }
    given: dict[str, Any] = {k: v for k, v in values.items() if v is not None}
    return Crops(**given)


def check_on_bad_image(value: str | None) -> None:
    """Raises a `UserError` unless a value is one that `make_sources` accepts."""
    if value is not None:
        choose("data.on_bad_image", value, ("error", "skip"))


def make_sources(
    train: Files, test: Files, crops: Crops, on_bad_image: str | None = None
) -> tuple[Source, Source]:
    """Returns the training and the test source of encoded images.

    Args:
        train: Training images.
        test: Test images.
        crops: What is shown of them.
        on_bad_image: "skip", or "error" (the default): what a source does about an
            image that cannot be decoded.
    """
    kind = RandomlyCroppedImages if crops.is_random else CroppedImages
    sources = kind(train, crops), CroppedImages(test, crops)
    if on_bad_image == "skip":
        return skip_bad_images(sources[0]), skip_bad_images(sources[1])
    return sources


def _check_range(key: str, values: Sequence[float], limit: float) -> None:
    wanted = "two numbers, the smallest first, above 0"
    wanted += f" and at most {limit:g}" if math.isfinite(limit) else " and finite"
    is_pair = isinstance(values, tuple | list) and len(values) == 2
    is_pair = is_pair and all(type(value) in (int, float) for value in values)
    holds = is_pair and 0 < values[0] <= values[1] <= limit and values[1] < math.inf
    require(key, values, holds, wanted)
