"""What a network sees of an image: one rule, whichever way the image comes in.

Evaluation during and after training, predictions, pictures of attention, and exported
files all show a network an image by the `Preprocess` of its run.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxattn.data.augment import IGNORED, normalize
from jaxattn.data.images import Box, center_box, read_crop, read_image, resize_crop
from jaxattn.data.label_maps import pad, resize_label_map
from jaxattn.data.source import Example
from jaxattn.errors import UserError, require

PADDING = (124, 116, 104)
"""The colour beside an image: the mean of ImageNet's, which becomes about 0."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """The part of an image that is shown, and at which size.

    An image is turned upright, scaled until its shorter side is `resize_px` (bilinear,
    with antialiasing), and cropped in the centre.

    Attributes:
        image_shape: `(H, W, C)` of what is shown.
        resize_px: The shorter side of the scaled image in pixels, at least as long as
            what is shown; None: just as long as needed.
    """

    image_shape: tuple[int, int, int]
    resize_px: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is shown, pixels."""
        return self.image_shape[:2]

    def box(self, height: int, width: int) -> Box:
        """Returns the rectangle that is shown of an image of this height and width."""
        side = self.resize_px
        covered = self.size if side is None else (side, side)
        return center_box(height, width, covered, self.size)

    def read(
        self, file: str | os.PathLike[str] | bytes, *, origin: str | None = None
    ) -> np.ndarray:
        """Returns what is shown of an image file, uint8 `[H, W, 3]`.

        Args:
            file: The file, or its content.
            origin: What errors call it; by default its path.

        Raises:
            BadImageError: If it cannot be decoded.
            UserError: If it cannot be opened.
        """
        return read_crop(file, self.box, self.size, origin=origin)

    def show(self, image: np.ndarray) -> np.ndarray:
        """Returns what is shown of an image uint8 `[h, w, 3]`; itself if all of it."""
        return resize_crop(image, self.box, self.size)

    def restore_label_map(
        self, label_map: np.ndarray, height: int, width: int
    ) -> np.ndarray:
        """Returns a label map of what is shown at the size of the whole image.

        Args:
            label_map: uint8 `[H, W]`.
            height: Of the image, pixels.
            width: Of the image, pixels.

        Returns:
            uint8 `[height, width]`, `IGNORED` where the image is not shown.
        """
        left, top, right, bottom = map(round, self.box(height, width))
        restored = np.full((height, width), IGNORED, np.uint8)
        # Each at least a pixel, of an image that is a line of them, too.
        bottom, right = max(bottom, top + 1), max(right, left + 1)
        shown = resize_label_map(label_map, bottom - top, right - left)
        restored[top:bottom, left:right] = shown
        return restored

    def describe(self) -> dict[str, Any]:
        """Returns what `make_frame` makes it of, as `config.json` keeps it."""
        return {"image_shape": list(self.image_shape), "resize_px": self.resize_px}


@dataclasses.dataclass(frozen=True)
class Canvas(Frame):
    """A whole image, in the upper left of a canvas.

    An image is turned upright and, where it is larger than the canvas, scaled down
    until it fits (bilinear, with antialiasing), its ratio kept. The rest of the canvas
    is `PADDING`. What a network says of the canvas can be brought back to the image.

    Attributes:
        image_shape: `(H, W, 3)` of the canvas.
        resize_px: None.
    """

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Returns the height and width, pixels, that an image takes of the canvas.

        Args:
            height: Of the image, pixels.
            width: Of the image, pixels.
        """
        H, W = self.size
        scale = min(H / height, W / width, 1)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def box(self, height: int, width: int) -> Box:
        """Returns the rectangle that is shown of an image: all of it."""
        return 0, 0, width, height

    def read(
        self, file: str | os.PathLike[str] | bytes, *, origin: str | None = None
    ) -> np.ndarray:
        """Returns an image file on the canvas, uint8 `[H, W, 3]`, as `Frame.read`."""
        image = read_crop(file, self.box, self.fit, origin=origin)
        return pad(image, self.size, PADDING)

    def show(self, image: np.ndarray) -> np.ndarray:
        """Returns an image uint8 `[h, w, 3]` on the canvas; itself if it fills it."""
        image = resize_crop(image, self.box, self.fit(*image.shape[:2]))
        return pad(image, self.size, PADDING)

    def show_label_map(self, label_map: np.ndarray) -> np.ndarray:
        """Returns the label map of an image, uint8 `[h, w]`, on the canvas.

        Classes are those of the nearest pixels; beside the image is `IGNORED`.
        """
        fitted = resize_label_map(label_map, *self.fit(*label_map.shape))
        return pad(fitted, self.size, IGNORED)

    def restore_label_map(
        self, label_map: np.ndarray, height: int, width: int
    ) -> np.ndarray:
        """Returns a label map of the canvas at the size of the image on it.

        Args:
            label_map: uint8 `[H, W]`.
            height: Of the image, pixels.
            width: Of the image, pixels.
        """
        h, w = self.fit(height, width)
        return resize_label_map(label_map[:h, :w], height, width)

    def restore_boxes(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """Returns boxes on the canvas as boxes of the image on it, cut to it.

        Args:
            boxes: float `[..., 4]`: x1, y1, x2, y2, pixels.
            height: Of the image, pixels.
            width: Of the image, pixels.
        """
        h, w = self.fit(height, width)
        scale = np.array([width / w, height / h] * 2, np.float32)
        most = np.array([width, height] * 2, np.float32)
        return np.clip(boxes * scale, 0, most)

    def describe(self) -> dict[str, Any]:
        """Returns what `make_frame` makes it of, as `config.json` keeps it."""
        return {**super().describe(), "is_canvas": True}


def make_frame(
    image_shape: tuple[int, int, int], resize_px: int | None, *, is_canvas: bool
) -> Frame:
    """Returns what is shown of an image.

    Args:
        image_shape: `(H, W, C)` of what is shown.
        resize_px: As of `Frame`; a `Canvas` has none.
        is_canvas: Shows the whole image on a `Canvas`.
    """
    return Canvas(image_shape) if is_canvas else Frame(image_shape, resize_px)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From an image of any size to a network's input.

    Attributes:
        frame: What is shown of an image.
        mean: Per channel, of intensities in [0, 1]; one value serves all channels.
        std: As `mean`.

    Raises:
        UserError: If a value is out of its range, or there are others than one or one
            per channel.
    """

    frame: Frame
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        values = {"mean": self.mean, "std": self.std}
        check_normalization(values, channels=self.frame.image_shape[2])

    def normalize(self, images: Any) -> jax.Array:
        """Returns the network's input, float32, of uint8 images `[N, H, W, C]`."""
        return normalize(images, mean=self.mean, std=self.std)


def check_normalization(
    section: Mapping[str, Any], *, key: str = "normalize.", channels: int | None = None
) -> None:
    """Checks the means and the standard deviations of a normalisation.

    Args:
        section: `mean`, in [0, 1], and `std`, above 0 and at most 1; None is not
            checked.
        key: What messages put before their names.
        channels: Of the images; None if they are not known yet.

    Raises:
        UserError: If a value is out of its range, or there are others than one or one
            per channel.
    """
    for name in ("mean", "std"):
        if section.get(name) is not None:
            _check_values(key + name, section[name], name == "std", channels)


def _check_values(key: str, values: Any, is_std: bool, channels: int | None) -> None:
    are_numbers = isinstance(values, Sequence | np.ndarray) and all(
        isinstance(value, int | float | np.number) and math.isfinite(value)
        for value in values
    )
    require(key, values, are_numbers, "numbers, one per channel or one for all")
    shown = tuple(float(value) for value in values)
    counts = {1, channels} if channels else {*range(1, len(shown) + 1)}
    wanted = f"one number, or {channels or 'one per channel'} as there are channels"
    require(key, shown, len(shown) in counts, wanted)
    wanted = f"{'above 0' if is_std else 'at least 0'} and at most 1"
    if max(shown) > 1:
        wanted += ", for pixels are divided by 255"
        if min(shown) >= 0 and max(shown) <= 255:  # as others write it
            wanted += f": divide by 255, {tuple(round(v / 255, 4) for v in shown)}"
    holds = all((v > 0 if is_std else v >= 0) and v <= 1 for v in shown)
    require(key, shown, holds, wanted)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files as a source without targets, each read when asked for.

    Attributes:
        paths: The files.
        frame: What is shown of each.
        skips: Shows black, with the `error`, in place of one that cannot be read.
        unread: Positions of those so far.
    """

    paths: tuple[pathlib.Path, ...]
    frame: Frame
    skips: bool = False
    unread: set[int] = dataclasses.field(default_factory=set, init=False)

    def __len__(self) -> int:
        """The number of files."""
        return len(self.paths)

    def photo(self, index: int) -> np.ndarray:
        """Returns the whole image at a position, upright, uint8 `[h, w, 3]`."""
        return read_image(self.paths[index])

    def __getitem__(self, index: int) -> Example:
        """What is shown of the image at a position, uint8 `[H, W, 3]`."""
        try:
            return {"image": self.frame.read(self.paths[index])}
        except UserError as error:
            if not self.skips:
                raise
            self.unread.add(index)
            black = np.zeros((*self.frame.size, 3), np.uint8)
            return {"image": black, "error": str(error)}
