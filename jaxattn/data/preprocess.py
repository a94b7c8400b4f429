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

from jaxattn.data.augment import normalize
from jaxattn.data.images import Box, center_box, read_crop, resize_crop
from jaxattn.data.source import Example
from jaxattn.errors import UserError, require


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
