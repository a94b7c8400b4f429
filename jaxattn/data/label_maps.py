"""Label maps: the class of every pixel, and `IGNORED` where there is none."""

from typing import Any

import numpy as np


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
    return ((np.arange(new_size) + 0.5) * (size / new_size)).astype(np.intp)


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
