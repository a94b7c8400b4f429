"""Colours of classes, where data name none: the colour map of Pascal VOC."""

from collections.abc import Sequence

import numpy as np

Colors = Sequence[tuple[int, int, int]]


def voc_colors(count: int = 256) -> np.ndarray:
    """Returns Pascal VOC's colours of the classes 0 to count - 1, uint8 `[count, 3]`.

    Of its development kit's VOClabelcolormap: the bits of a number, three at a time,
    are those of red, green and blue from the highest on. 255 is a pale yellow.
    """
    numbers = np.arange(count)
    colors = np.zeros((count, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = numbers >> (3 * place + channel) & 1
            colors[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return colors


def make_palette(class_colors: Colors | None = None) -> np.ndarray:
    """Returns the colour of each byte of a label map, uint8 `[256, 3]`.

    Args:
        class_colors: Red, green and blue of the first classes; what it lacks is Pascal
            VOC's.
    """
    palette = voc_colors()
    given = np.asarray(class_colors or (), np.uint8).reshape(-1, 3)
    palette[: len(given)] = given
    return palette
