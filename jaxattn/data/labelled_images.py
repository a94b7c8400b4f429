"""Images with label maps, of many sizes, read from files when asked for.

Evaluation shows an image whole on a `Canvas`. Training shows a random crop of the image
scaled at random, as mmsegmentation's `RandomResize`, `RandomCrop` and padding do: the
same of the label map, its classes those of the nearest pixels.

Deviations: a factor of scale is of the size at which evaluation shows the image; images
that shrink are antialiased, as everywhere here; and what pads an image is the mean
colour of ImageNet's, which becomes about 0, rather than 0 itself.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxattn.data.augment import IGNORED
from jaxattn.data.images import Box, read_crop
from jaxattn.data.label_maps import LabelMapReader, nearest, pad
from jaxattn.data.preprocess import PADDING, Canvas
from jaxattn.data.source import Example
from jaxattn.errors import UserError, require

# Of mmsegmentation's `RandomCrop`, before a crop of mostly one class is taken.
_MAX_ATTEMPTS = 10


class LabelledImage(NamedTuple):
    """The files of an image and of its label map."""

    image: str
    label_map: str


class Window(NamedTuple):
    """A rectangle of a scaled image.

    Attributes:
        rows: The row of the image that is nearest to each of the window, int `[h]`.
        columns: The same of its columns, int `[w]`.
        box: What the window shows, in pixels of the image itself.
    """

    rows: np.ndarray
    columns: np.ndarray
    box: Box

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return len(self.rows), len(self.columns)

    def take(self, label_map: np.ndarray) -> np.ndarray:
        """Returns its part of the image's label map, uint8 `[h, w]`."""
        return label_map[self.rows[:, None], self.columns]


@dataclasses.dataclass(frozen=True)
class ScaledCrops:
    """What training shows of an image.

    Attributes:
        size: Height and width in pixels of a crop; what an image lacks is padded.
        scale_range: Smallest and largest factor by which an image is scaled before,
            its ratio kept.
        cat_max_ratio: The largest share of one class in a crop, of the pixels that are
            not ignored; another one is tried, ten times. 1: any.

    Raises:
        UserError: If a value is out of its range.
    """

    size: tuple[int, int]
    scale_range: Sequence[float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75

    def __post_init__(self) -> None:
        scales, share = tuple(self.scale_range), self.cat_max_ratio
        holds = len(scales) == 2 and 0 < scales[0] <= scales[1] <= 10
        wanted = "two numbers, the smallest first, above 0 and at most 10"
        require("data.scale_range", scales, holds, wanted)
        require("data.cat_max_ratio", share, 0 < share <= 1, "in (0, 1]")

    def draw(
        self, rng: np.random.Generator, label_map: np.ndarray, fitted: tuple[int, int]
    ) -> Window:
        """Draws what is shown.

        Args:
            rng: To draw from.
            label_map: Of the image, uint8 `[H, W]`.
            fitted: Height and width in pixels of the image at factor 1.
        """
        low, high = self.scale_range
        factor = rng.uniform(low, high)
        scaled = [max(1, int(side * factor + 0.5)) for side in fitted]
        window = self._place(rng, label_map.shape, scaled)
        is_whole = window.size == tuple(scaled)
        for _ in range(0 if is_whole else _MAX_ATTEMPTS):
            if self.cat_max_ratio == 1 or self._is_varied(window.take(label_map)):
                break
            window = self._place(rng, label_map.shape, scaled)
        return window

    def _place(
        self, rng: np.random.Generator, shape: Sequence[int], scaled: Sequence[int]
    ) -> Window:
        """Draws where a crop of a scaled image lies."""
        spans = []
        for side, new_side, most in zip(shape, scaled, self.size, strict=True):
            length = min(new_side, most)
            start = int(rng.integers(new_side - length + 1))
            end = start + length
            ends = start * side / new_side, end * side / new_side
            spans.append((nearest(side, new_side)[start:end], *ends))
        (rows, top, bottom), (columns, left, right) = spans
        return Window(rows, columns, (left, top, right, bottom))

    def _is_varied(self, label_map: np.ndarray) -> bool:
        counts = np.bincount(label_map.ravel(), minlength=256)[:IGNORED]
        return (counts > 0).sum() > 1 and bool(
            counts.max() < self.cat_max_ratio * counts.sum()
        )


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and their label maps as a source, shown as in evaluation.

    Attributes:
        files: Where they are.
        reader: Of the label maps.
        canvas: On which the images are shown.
    """

    files: tuple[LabelledImage, ...]
    reader: LabelMapReader
    canvas: Canvas

    def __len__(self) -> int:
        """The number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        """The image at a position, uint8 `[H, W, 3]`, and `label_map`, `[H, W]`."""
        files, canvas = self.files[index], self.canvas
        label_map = self.reader.read(files.label_map)
        height, width = label_map.shape
        box, size = canvas.box(height, width), canvas.fit(height, width)
        image = _read_part(files, label_map, box, size)
        return {
            "image": pad(image, canvas.size, PADDING),
            "label_map": canvas.show_label_map(label_map),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class RandomlyScaledImages(LabelledImages):
    """Images and their label maps as a source of training examples.

    Attributes:
        files: Where they are.
        reader: Of the label maps.
        canvas: On which evaluation shows the images.
        crops: What training shows of them.
    """

    crops: ScaledCrops

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """A random crop of the image at a position and of its label map."""
        files, crops = self.files[index], self.crops
        label_map = self.reader.read(files.label_map)
        window = crops.draw(rng, label_map, self.canvas.fit(*label_map.shape))
        image = _read_part(files, label_map, window.box, window.size, reduce=True)
        return {
            "image": pad(image, crops.size, PADDING),
            "label_map": pad(window.take(label_map), crops.size, IGNORED),
        }


def _read_part(
    files: LabelledImage,
    label_map: np.ndarray,
    box: Box,
    size: tuple[int, int],
    *,
    reduce: bool = False,
) -> np.ndarray:
    """Reads a part of an image, which must be as large as its label map."""
    found: list[tuple[int, int]] = []

    def choose_box(height: int, width: int) -> Box:
        found.append((height, width))
        is_as_wanted = (height, width) == label_map.shape
        return box if is_as_wanted else (0, 0, width, height)

    image = read_crop(files.image, choose_box, size, reduce=reduce)
    require_same_size(files, found[-1], label_map.shape)
    return image


def require_same_size(
    files: LabelledImage, image: Sequence[int], label_map: Sequence[int]
) -> None:
    """Raises a `UserError` if an image and its label map differ in height or width."""
    if tuple(image) != tuple(label_map):
        found, wanted = (" x ".join(map(str, size)) for size in (label_map, image))
        raise UserError(
            f"{files.label_map}: is of {found} pixels, its image {files.image} of"
            f" {wanted}; must be of the same size"
        )
