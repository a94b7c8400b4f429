"""Label maps: the class of every pixel, and `IGNORED` where there is none."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxattn.data.augment import IGNORED
from jaxattn.data.images import decode
from jaxattn.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

# Of Pillow: a byte or a bit of each pixel is its class, whatever a palette makes of it.
_MODES = ("P", "L", "1")


@dataclasses.dataclass(frozen=True)
class LabelMapReader:
    """Reads label maps from PNG files whose values are classes.

    Attributes:
        num_classes: Classes are 0 to `num_classes - 1`, at most 255 of them.
        reduce_zero_label: 0 in a file is no class but ignored, and 1 the first class.
    """

    num_classes: int
    reduce_zero_label: bool = False

    def read(self, path: str) -> np.ndarray:
        """Returns the classes of a file, uint8 `[H, W]`; 255 is ignored, as in files.

        Raises:
            BadImageError: If the file cannot be decoded.
            UserError: If it is no label map, or has a class beyond those there are.
        """
        mode, values = decode(path, path, _indices)
        if mode not in _MODES:
            raise UserError(
                f"{path}: has pixels of mode {mode}, must be a label map: one byte a"
                " pixel, its class (PNG, mode L or P)"
            )
        if self._is_beyond[values].any():
            self._refuse(path, values)
        return self._classes[values] if self.reduce_zero_label else values

    @functools.cached_property
    def _classes(self) -> np.ndarray:
        """What each value stands for, uint8 `[256]`."""
        values = np.arange(256)
        if self.reduce_zero_label:
            values = np.where((values == 0) | (values == IGNORED), IGNORED, values - 1)
        return values.astype(np.uint8)

    @functools.cached_property
    def _is_beyond(self) -> np.ndarray:
        return (self._classes >= self.num_classes) & (self._classes != IGNORED)

    def _refuse(self, path: str, values: np.ndarray) -> None:
        row, column = np.argwhere(self._is_beyond[values])[0]
        first = int(self.reduce_zero_label)
        last = self.num_classes - 1 + first
        ignored = "0 and 255 are" if self.reduce_zero_label else "255 is"
        found = int(values.max(where=self._is_beyond[values], initial=0))
        # From 1 on, as many number them.
        hint = "; if 0 is no class, set data.reduce_zero_label=True"
        is_shifted = found == self.num_classes and not self.reduce_zero_label
        raise UserError(
            f"{path}: class {values[row, column]} in row {row}, column {column}, must"
            f" be {first} to {last} ({ignored} ignored){hint if is_shifted else ''}"
        )


def _indices(image: "Image.Image") -> tuple[str, np.ndarray]:
    # Pillow spreads grey of 2 or 4 bits over a byte: 1 of 4 bits would be class 17.
    tiles = getattr(image, "tile", None)
    raw = str(tiles[0][3]) if tiles else ""
    mode = raw if raw in ("L;2", "L;4") else image.mode
    return mode, np.asarray(image).astype(np.uint8)


def resize_label_map(label_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns a label map `[h, w]` at another size, the class of the nearest pixels.

    The nearest is that whose middle is, as of Pillow, so that classes stay where images
    that are scaled have them; `floor(i * h / height)`, as PyTorch and OpenCV have it,
    would shift them by up to half a pixel.
    """
    h, w = label_map.shape
    if (h, w) == (height, width):
        return label_map
    rows, columns = nearest(h, height), nearest(w, width)
    return label_map[rows[:, None], columns]


def nearest(size: int, new_size: int) -> np.ndarray:
    """Returns the nearest of `size` pixels to each of `new_size`, int `[new_size]`."""
    return (2 * np.arange(new_size) + 1) * size // (2 * new_size)


def pad(image: np.ndarray, size: tuple[int, int], value: Any) -> np.ndarray:
    """Returns an image or label map with a value at its right and below.

    Args:
        image: `[h, w, ...]`.
        size: Height and width in pixels of the result, no less than the image's.
        value: Of a pixel.
    """
    h, w = image.shape[:2]
    if (h, w) == tuple(size):
        return image
    padded = np.empty((*size, *image.shape[2:]), image.dtype)
    padded[...] = value
    padded[:h, :w] = image
    return padded
