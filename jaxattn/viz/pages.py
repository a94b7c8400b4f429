"""Pages of what a network attends to: arrays of `attention_maps` to figures."""

import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from jaxattn.viz.attention_maps import Attention, Panel, panels, select_blocks
from jaxattn.viz.backend import default_look
from jaxattn.viz.figure import (
    BLUE,
    INK,
    hide_frame,
    legible,
    new_figure,
    show_image,
    style_axes,
    wrap,
)

_COLUMNS = 4
_SIDE = 1.9  # inches of a panel
_LETTERS = 23  # of a title above a panel
_LABEL_SIZE = 7.5
_AXIS_LABEL: Mapping[str, Any] = {"fontsize": 6.5, "labelpad": 1, "color": INK}
_HEAT = "inferno"
_DIVERGING = "RdBu_r"
_MATRICES = {"rows", "columns"}
_TEXT_SIZE = 7
# How to read the panels of each kind; where there is no gate, Grad-CAM alone.
_READING = {
    "cam": "Grad-CAM: the brighter a place, the more it speaks for the class predicted,"
    " the first one in the title, or for the class that the title names.",
    "map": "Maps: what a layer multiplies each place with, or where a branch wins;"
    " bright passes, dark is held back. Above each are its least and its largest value:"
    " colours are those of its own range.",
    "bars": "Bars: what a layer multiplies each channel with, the same at every place.",
    "rows": "Rows and columns: what SCSA multiplies them with in each channel, less the"
    " channel's mean.",
}


def plot_pages(
    attention: Attention,
    images: np.ndarray,
    titles: Sequence[str],
    pattern: str | None = None,
) -> list[Figure]:
    """Draws a page for each image: the image, Grad-CAM, then a row or more per block.

    Args:
        attention: Of the images.
        images: uint8 `[N, H, W, C]`, C = 1 or 3, before normalisation.
        titles: Of each page, lines.
        pattern: Of layers; see `select_blocks`.

    Returns:
        N figures.

    Raises:
        UserError: If the pattern fits no layer, or too many.
    """
    blocks = select_blocks(attention.gates, pattern)
    figures = []
    for i, image in enumerate(images):
        rows = [
            [panel for layer in layers for panel in panels(attention.gates, layer, i)]
            for layers in blocks.values()
        ]
        figures.append(plot_page(image, attention.grad_cam[i], rows, titles[i]))
    return figures


@default_look
def plot_page(
    image: np.ndarray, cam: np.ndarray, rows: Sequence[Sequence[Panel]], title: str
) -> Figure:
    """Draws one page.

    Args:
        image: uint8 `[H, W, C]`, C = 1 or 3.
        cam: Grad-CAM `[h, w]`, at least 0.
        rows: Panels, each sequence on a row of its own, continued on the next beyond
            four.
        title: Lines, broken where the page is too narrow for them.

    Returns:
        A figure; below the panels are the colours, and how to read them.
    """
    lines = [
        row[i : i + _COLUMNS] for row in rows for i in range(0, len(row), _COLUMNS)
    ]
    count, columns = 1 + len(lines), max([2, *map(len, lines)])
    figure = new_figure(_SIDE * columns, (_SIDE + 0.5) * count + 1.3, pad=0.04)
    width = _LETTERS * columns
    title = "\n".join(
        textwrap.fill(line, width) for line in legible(title).splitlines()
    )
    figure.suptitle(title, fontsize=10, color=INK, parse_math=False)
    grid = figure.subplots(count, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    show_image(grid[0, 0], image)
    _label(grid[0, 0], "image")
    _overlay(grid[0, 1], image, cam, "Grad-CAM\nof the class predicted", smooth=True)
    for line, row in zip(lines, grid[1:], strict=True):
        for panel, axes in zip(line, row, strict=False):
            axes.set_axis_on()
            _DRAW[panel.kind](axes, image, panel)
            _label(axes, panel.label)
    kinds = {panel.kind for row in rows for panel in row}
    _explain(figure, grid, kinds)
    return figure


@default_look
def plot_gates(image: np.ndarray, shown: Sequence[Panel]) -> Figure:
    """Draws an image, and beside it what one layer multiplied its map with.

    Args:
        image: uint8 `[H, W, 3]`.
        shown: Panels of the layer, whose labels are not written.
    """
    figure = new_figure(_SIDE * (1 + len(shown)), _SIDE)
    first, *others = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    show_image(first, image)
    for axes, panel in zip(others, shown, strict=True):
        _DRAW[panel.kind](axes, image, panel)
        if axes.images:
            hide_frame(axes)
    return figure


def _explain(figure: Figure, grid: np.ndarray, kinds: Collection[str]) -> None:
    """Draws the colours below the panels, and says how to read these."""
    width, height = figure.get_size_inches()
    share, thickness = (0.45 if grid.shape[1] > 2 else 0.9), 0.09  # inch
    bars = [(_HEAT, "least of the panel", "most")]
    if _MATRICES & set(kinds):
        bars.append((_DIVERGING, "below the channel's mean", "above it"))
    for colours, low, high in bars:
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, 1), colours),
            ax=grid,
            location="bottom",
            fraction=thickness / height,
            shrink=share,
            aspect=share * width / thickness,
            pad=0.01,
        )
        bar.set_ticks([0, 1], labels=[low, high])
        bar.ax.tick_params(length=0, labelsize=6.5, colors=INK)
        for label, side in zip(
            bar.ax.get_xticklabels(), ("left", "right"), strict=True
        ):
            label.set_horizontalalignment(side)
        bar.outline.set_visible(False)
    shown = [_READING["cam"], *(_READING[kind] for kind in _READING if kind in kinds)]
    width_pt = 72 * width - 24
    lines = (wrap(line, width_pt, _TEXT_SIZE, most_lines=6) for line in shown)
    figure.supxlabel(
        "\n".join(lines), x=0.01, ha="left", fontsize=_TEXT_SIZE, color=INK
    )


def _overlay(
    axes: Axes,
    image: np.ndarray,
    values: np.ndarray,
    label: str = "",
    *,
    smooth: bool = False,
) -> None:
    """Draws values over a grey and pale image, stretched to its size."""
    H, W = image.shape[:2]
    axes.imshow(image.mean(-1), cmap="gray", vmin=0, vmax=255)
    axes.imshow(
        values,
        cmap=_HEAT,
        alpha=0.6,
        extent=(-0.5, W - 0.5, H - 0.5, -0.5),
        # Cells as they are: what is drawn is what multiplied.
        interpolation="bilinear" if smooth else "nearest",
    )
    axes.set_axis_on()
    _label(axes, label)


def _map(axes: Axes, image: np.ndarray, panel: Panel) -> None:
    _overlay(axes, image, panel.values)


def _bars(axes: Axes, image: np.ndarray, panel: Panel) -> None:
    del image
    axes.stairs(panel.values, fill=True, color=BLUE)
    low, high = float(panel.values.min()), float(panel.values.max())
    # At least this much, so that a gate that is all but constant looks it.
    margin = max(0.05 * (high - low), 0.005)
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(0, len(panel.values))
    axes.set_box_aspect(1)
    style_axes(axes)
    axes.tick_params(labelsize=6)
    axes.ticklabel_format(useOffset=False)
    axes.set_xlabel("channel", **_AXIS_LABEL)


def _matrix(axes: Axes, image: np.ndarray, panel: Panel) -> None:
    """Draws positions by channel; positions as they lie in the image."""
    del image
    most = float(np.abs(panel.values).max()) or 1.0
    axes.imshow(
        panel.values,
        cmap=_DIVERGING,
        vmin=-most,
        vmax=most,
        aspect="auto",
        interpolation="antialiased",
    )
    axes.set_box_aspect(1)
    is_rows = panel.kind == "rows"
    axes.set_xlabel("channel" if is_rows else "column", **_AXIS_LABEL)
    axes.set_ylabel("row" if is_rows else "channel", **_AXIS_LABEL)


_DRAW: Mapping[str, Callable[[Axes, np.ndarray, Panel], None]] = {
    "map": _map,
    "bars": _bars,
    "rows": _matrix,
    "columns": _matrix,
}


def _label(axes: Axes, text: str) -> None:
    if not text:
        return
    axes.set_title(text, loc="left", fontsize=_LABEL_SIZE, color=INK, parse_math=False)
    if axes.images:
        hide_frame(axes)
