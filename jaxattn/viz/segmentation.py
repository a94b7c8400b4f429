"""Figures of a segmentation: label maps over their photos, and IoU by class."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxattn.data.augment.transform import IGNORED
from jaxattn.viz.backend import default_look
from jaxattn.viz.classification import plot_by_class
from jaxattn.viz.figure import INK, new_figure, shorten, show_image, wrap

_OPACITY = 0.6
_COLUMN = 2.3  # inches of an image
_LABEL_SIZE = 8
_MOST_NAMED = 32  # classes in a legend
_LEGEND_COLUMN = 1.45  # inches


def overlay(
    image: np.ndarray, label_map: np.ndarray, palette: np.ndarray
) -> np.ndarray:
    """Returns a photo in the colours of its classes, uint8 `[H, W, 3]`.

    Args:
        image: uint8 `[H, W, C]`, C = 1 or 3.
        label_map: uint8 `[H, W]`; what is `IGNORED` has a colour, too.
        palette: uint8 `[256, 3]`.
    """
    photo = np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float32)
    mixed = (1 - _OPACITY) * photo + _OPACITY * palette[label_map]
    return np.round(mixed).astype(np.uint8)


@default_look
def plot_overlays(
    images: Sequence[np.ndarray],
    label_maps: Mapping[str, Sequence[np.ndarray]],
    titles: Sequence[str],
    class_names: Sequence[str],
    palette: np.ndarray,
) -> Figure:
    """Draws photos, and beside each its label maps over it, with a legend.

    Args:
        images: N of uint8 `[H, W, C]`, C = 1 or 3, N at least 1.
        label_maps: By what they are, such as "truth": N of uint8 `[H, W]` each.
        titles: N lines, one under each photo.
        class_names: The name of each class.
        palette: uint8 `[256, 3]`.

    Returns:
        A figure of a row for each photo. The legend has the classes that are shown, the
        largest first; of more than 32 the largest.

    Raises:
        ValueError: If there is no image, or not one title per image.
    """
    N = len(images)
    if N == 0 or len(titles) != N:
        raise ValueError(f"{N} images with {len(titles)} titles; need N >= 1 of each")
    columns = 1 + len(label_maps)
    ratio = max(image.shape[0] / image.shape[1] for image in images)
    entries, more = _legend(label_maps, class_names, palette)
    legend_columns = max(1, int(_COLUMN * columns / _LEGEND_COLUMN))
    lines = -(-len(entries) // legend_columns)
    height = N * (_COLUMN * ratio + 0.3) + 0.25 + 0.19 * lines + 0.2
    figure = new_figure(_COLUMN * columns, height, pad=0.04)
    grid = figure.subplots(N, columns, squeeze=False)
    for i, row in enumerate(grid):
        maps = [maps[i] for maps in label_maps.values()]
        shown = [images[i], *(overlay(images[i], each, palette) for each in maps)]
        for axes, image in zip(row, shown, strict=True):
            show_image(axes, image)
        width_pt = 72 * _COLUMN - 8
        text = wrap(titles[i], width_pt, _LABEL_SIZE, most_lines=1)
        style = {"fontsize": _LABEL_SIZE, "color": INK, "parse_math": False}
        row[0].set_xlabel(text, labelpad=3, **style)
    for axes, name in zip(grid[0], ("image", *label_maps), strict=True):
        axes.set_title(name, loc="left", fontsize=10, color=INK)
    legend = figure.legend(
        handles=entries,
        loc="outside lower left",
        ncols=legend_columns,
        frameon=False,
        fontsize=_LABEL_SIZE,
        labelcolor=INK,
        handlelength=1.2,
        handleheight=1.0,
        columnspacing=1.2,
        title=more or None,
        title_fontsize=_LABEL_SIZE,
        alignment="left",
    )
    for entry in legend.get_texts():
        entry.set_parse_math(False)
    return figure


def _legend(
    label_maps: Mapping[str, Sequence[np.ndarray]],
    class_names: Sequence[str],
    palette: np.ndarray,
) -> tuple[list[Patch], str]:
    """Returns an entry for each class that is shown, and what it leaves out."""
    counts = np.zeros(IGNORED + 1, np.int64)
    for maps in label_maps.values():
        for label_map in maps:
            counts += np.bincount(label_map.ravel(), minlength=IGNORED + 1)
    order = np.argsort(-counts[:IGNORED], kind="stable")
    present = [int(i) for i in order if counts[i]]
    names = {i: shorten(class_names[i], 16) for i in present[:_MOST_NAMED]}
    if counts[IGNORED]:
        names[IGNORED] = "ignored"
    edge = {"edgecolor": "#888888", "linewidth": 0.5}
    entries = [
        Patch(facecolor=palette[i] / 255, label=name, **edge)
        for i, name in names.items()
    ]
    left_out = len(present) - _MOST_NAMED
    return entries, f"the {_MOST_NAMED} largest classes" if left_out > 0 else ""


def plot_class_iou(
    iou: np.ndarray, support: np.ndarray, class_names: Sequence[str]
) -> Figure:
    """Draws the IoU of every class as bars, the lowest at the bottom.

    Args:
        iou: float `[K]` in [0, 1]; NaN, of a class that is neither in a label map nor
            predicted, is left out.
        support: int `[K]`, pixels.
        class_names: K names.

    Returns:
        A figure of at most 30 classes, those of lowest IoU; its title says so.
    """
    share = 100 * support / max(int(support.sum()), 1)
    names = [
        f"{shorten(n)} ({s:.1f} %)" for n, s in zip(class_names, share, strict=True)
    ]
    return plot_by_class(
        iou, ~np.isnan(iou), names, "IoU", "IoU (%), share of the pixels in brackets"
    )
