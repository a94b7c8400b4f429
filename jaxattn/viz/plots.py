"""Pure functions from arrays to matplotlib figures, and figures to files.

Figures are built with the object interface: pyplot would keep them alive in global
state and could open a display. Names of classes are drawn literally
(`parse_math=False`), since a `$` in one would otherwise be read as mathematics.
"""

import contextlib
import dataclasses
import io
import itertools
import os
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import Image

from jaxattn.atomic import write_atomically

_INK = "#333333"
_PALE = "#9a9a9a"
_BLUE = "#4477aa"
_RED = "#cc5544"
_GREEN = "#228866"

# Of a history: label, suffix of the key, colour. EMA shares the validation's data.
_CURVES = (
    ("train", "train_{}", _BLUE),
    ("validation", "val_{}", _RED),
    ("validation, EMA", "val_{}_ema", _GREEN),
)

_MAX_LABELS = 25  # tick labels along one side that remain legible
_MAX_CELLS = 20  # classes up to which every cell carries its count
_MAX_BYTES = 200_000


def plot_history(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws loss and accuracy of training and validation over the epochs.

    Args:
        history: one mapping per epoch with `epoch`, `train_loss`, `train_accuracy`
            and, where there is a validation, `val_loss`, `val_accuracy`, `val_loss_ema`
            and `val_accuracy_ema`; accuracies in [0, 1]. Absent, None and non-finite
            values are left out.

    Returns:
        A figure of two panels; the epoch best by `val_accuracy` is marked.
    """
    figure = _figure(9.6, 3.6)
    loss, accuracy = figure.subplots(1, 2)
    for axes, metric, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for label, key, colour in _CURVES:
            epochs, values = _series(history, key.format(metric))
            if len(epochs):
                # A line of few points is not visible without its points.
                marker = "o" if len(epochs) <= 15 else ""
                style = {"color": colour, "marker": marker, "markersize": 3.5}
                axes.plot(epochs, scale * values, label=label, linewidth=1.5, **style)
        _style(axes)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
        if len({row["epoch"] for row in history}) == 1:
            axes.set_xticks([history[0]["epoch"]])
    _title(loss, "Loss")
    _title(accuracy, "Accuracy (%)")
    _log_scale_if_spiked(loss)
    _mark_best(loss, accuracy, *_series(history, "val_accuracy"))
    if accuracy.lines:
        loss.legend(frameon=False, fontsize=9, labelcolor=_INK)
    return figure


def plot_confusion_matrix(confusion: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draws a confusion matrix, coloured by the share of each true class.

    Args:
        confusion: int [C, C], counts; rows are true classes, columns predicted ones.
        class_names: C names.

    Returns:
        A figure with counts in the cells up to 20 classes; beyond that colours only,
        on a square-root scale so that rare confusions stay visible, and sparse labels.

    Raises:
        ValueError: if the shapes disagree.
    """
    confusion = np.asarray(confusion)
    C = len(class_names)
    if confusion.shape != (C, C):
        raise ValueError(
            f"confusion has shape {confusion.shape}; {C} class_names need ({C}, {C})"
        )
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.45 * C, 4.0, 7.5))
    figure = _figure(side + 1.6, side + 0.9)
    axes = figure.subplots()
    norm = PowerNorm(0.5 if C > _MAX_CELLS else 1.0, vmin=0, vmax=1)
    mesh = axes.imshow(share, cmap="Blues", norm=norm, interpolation="nearest")
    if C <= _MAX_CELLS:
        _write_counts(axes, confusion, share)
    _label_classes(axes, class_names)
    total = int(confusion.sum())
    _title(axes, f"{np.trace(confusion) / max(total, 1):.2%} of {total:,} correct")
    bar = figure.colorbar(mesh, ax=axes, shrink=0.6, aspect=25, pad=0.02)
    bar.set_label("share of the true class", color=_INK, fontsize=9)
    bar.set_ticks([0, 0.1, 0.5, 1] if C > _MAX_CELLS else [0, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    bar.ax.tick_params(length=0, labelsize=8, colors=_INK)
    bar.outline.set_visible(False)
    return figure


def plot_images(
    images: np.ndarray, titles: Sequence[str], *, columns: int = 8
) -> Figure:
    """Draws a grid of images with a label under each.

    Args:
        images: uint8 [N, H, W, C], C = 1 (grey) or 3; N at least 1.
        titles: N labels; each is wrapped to at most four short lines.
        columns: images per row.

    Returns:
        The figure; small images are enlarged without interpolation.

    Raises:
        ValueError: if there is no image, or not one title per image.
    """
    N, H, W, _ = images.shape
    if N == 0 or len(titles) != N:
        raise ValueError(f"{N} images with {len(titles)} titles; need N >= 1 of each")
    columns = min(columns, N)
    rows = -(-N // columns)
    labels = [_wrap(title) for title in titles]
    lines = max(label.count("\n") + 1 for label in labels)
    figure = _figure(
        1.2 * columns, rows * (1.2 * H / W + 0.13 * lines + 0.14), pad=0.04
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    # Photographs are reduced, and nearest-neighbour would alias them.
    interpolation = "nearest" if max(H, W) <= 128 else "antialiased"
    for axes, image, label in zip(grid.flat, images, labels, strict=False):
        axes.set_axis_on()
        if image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        axes.imshow(image, interpolation=interpolation)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_xlabel(label, fontsize=7, color=_INK, labelpad=3, parse_math=False)
    return figure


def plot_reliability(
    bin_confidence: np.ndarray, bin_accuracy: np.ndarray, bin_count: np.ndarray
) -> Figure:
    """Draws a reliability diagram over the counts of its bins.

    Args:
        bin_confidence: float [B], mean confidence of each of B equal bins of [0, 1].
        bin_accuracy: float [B], accuracy of each, in [0, 1].
        bin_count: int [B], examples in each; the values of empty bins are not read.

    Returns:
        A figure of two panels; the title gives the expected calibration error.
    """
    B = len(bin_count)
    count = np.asarray(bin_count)
    filled = count > 0
    left = (np.arange(B) / B)[filled]
    confidence = np.asarray(bin_confidence)[filled]
    accuracy = np.asarray(bin_accuracy)[filled]
    weight = count[filled] / max(count.sum(), 1)
    error = float(np.sum(weight * np.abs(accuracy - confidence)))

    figure = _figure(4.4, 5.0)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bar = {"width": 1 / B, "align": "edge", "edgecolor": "white", "linewidth": 0.8}
    top.bar(left, accuracy, color=_BLUE, label="accuracy", **bar)
    top.plot([0, 1], [0, 1], color=_PALE, linewidth=1, dashes=(4, 3), zorder=2)
    # A segment from each bin's accuracy to where its confidence says it should be.
    top.vlines(confidence, accuracy, confidence, color=_RED, linewidth=1.2, zorder=3)
    dots = {"color": _RED, "markersize": 4, "linestyle": "", "zorder": 4}
    top.plot(confidence, confidence, marker="o", label="confidence", **dots)
    top.set_ylim(0, 1)
    top.legend(frameon=False, fontsize=9, loc="upper left", labelcolor=_INK)
    bottom.bar(left, count[filled], color=_PALE, **bar)
    bottom.set_xlim(0, 1)
    bottom.set_xlabel("confidence")
    bottom.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    bottom.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _title(top, f"Reliability   (ECE {error:.1%})")
    _title(bottom, f"Examples   ({count.sum():,})", size=9)
    _style(top)
    _style(bottom)
    return figure


@dataclasses.dataclass(frozen=True, eq=False)
class Band:
    """What lies between two curves, or one curve if they are the same.

    Attributes:
        label: For the legend; "" leaves it out of it.
        x: float [M].
        low: float [M], the lower curve.
        high: float [M], the upper curve.
        colour: Of curves and area.
        alpha: Opacity of the curves, in [0, 1].
        line: Style of the curves, as matplotlib names it.
    """

    label: str
    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    colour: str
    alpha: float = 0.9
    line: str = "-"


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """Bands in one pair of axes.

    Attributes:
        title: Above it.
        bands: The first ones are drawn first.
        x_label: Of the horizontal axis.
        y_label: Of the vertical axis.
        x_limits: Of the horizontal axis; None fits the data.
        log: Draws values above 0 on a logarithmic scale.
    """

    title: str
    bands: Sequence[Band]
    x_label: str
    y_label: str
    x_limits: tuple[float, float] | None = None
    log: bool = False


def plot_bands(
    panels: Sequence[Sequence[Panel]], *, width: float, height: float
) -> Figure:
    """Draws bands, in rows of panels.

    Args:
        panels: Rows of equally many panels.
        width: Of the figure, inches.
        height: Of the figure, inches.

    Returns:
        The figure; its first panel has the legend.
    """
    figure = _figure(width, height)
    grid = figure.subplots(len(panels), len(panels[0]), squeeze=False)
    flat = itertools.chain.from_iterable(panels)
    for axes, panel in zip(grid.flat, flat, strict=True):
        for band in panel.bands:
            style = {"color": band.colour, "linestyle": band.line, "linewidth": 1}
            axes.plot(band.x, band.high, label=band.label, alpha=band.alpha, **style)
            if band.low is not band.high:
                axes.plot(band.x, band.low, alpha=band.alpha, **style)
                axes.fill_between(
                    band.x, band.low, band.high, color=band.colour, alpha=0.3, lw=0
                )
        if panel.log:
            axes.set_yscale("log")
        # Steps and epochs are whole numbers.
        axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
        if panel.x_limits is not None:
            axes.set_xlim(*panel.x_limits)
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label, color=_INK)
        _title(axes, panel.title, size=10)
        _style(axes)
    if any(band.label for band in panels[0][0].bands):
        grid[0, 0].legend(frameon=False, fontsize=9, labelcolor=_INK)
    return figure


def figure_to_array(figure: Figure) -> np.ndarray:
    """Renders a figure to uint8 [H, W, 3], at the figure's own resolution."""
    canvas = FigureCanvasAgg(figure)
    with _no_glyph_warnings():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG, whole or not at all.

    A picture over 200 kB (a grid of photographs) gets a palette of 256 colours, and
    then fewer pixels.

    Args:
        figure: the figure.
        path: the file; its directory exists.

    Raises:
        OSError: if it cannot be written; names the path.
    """
    write_atomically(path, _encode(figure))


def _encode(figure: Figure) -> bytes:
    image = Image.fromarray(figure_to_array(figure))
    data = _png(image)
    scale = 1.0
    while len(data) > _MAX_BYTES and scale > 0.25:
        size = (round(image.width * scale), round(image.height * scale))
        data = _png(image.resize(size, Image.Resampling.LANCZOS).quantize(256))
        scale *= 0.8
    return data


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


@contextlib.contextmanager
def _no_glyph_warnings() -> Iterator[None]:
    # One warning per character that the font lacks, at every drawing.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _figure(width: float, height: float, pad: float = 0.08) -> Figure:
    """A figure of inches `width` and `height`, laid out when it is drawn."""
    layout = ConstrainedLayoutEngine(w_pad=pad, h_pad=pad)
    figure = Figure(figsize=(width, height), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_PALE)
    axes.tick_params(colors=_INK, labelsize=9, length=3, color=_PALE)
    axes.xaxis.label.set_color(_INK)
    axes.set_axisbelow(True)


def _shorten(name: str, limit: int = 22) -> str:
    """Cuts the middle out of a long name: names often differ only at their ends."""
    return name if len(name) <= limit else f"{name[: limit - 9]}…{name[-8:]}"


def _title(axes: Axes, text: str, size: float = 11) -> None:
    axes.set_title(text, loc="left", fontsize=size, color=_INK)


def _series(
    history: Sequence[Mapping[str, Any]], key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Epochs [M] and values [M] of the rows where `key` is a finite number."""
    pairs = [(row["epoch"], row.get(key)) for row in history]
    finite = [(e, v) for e, v in pairs if v is not None and np.isfinite(v)]
    epochs, values = np.array(finite, float).reshape(-1, 2).T
    return epochs, values


def _log_scale_if_spiked(axes: Axes) -> None:
    """One diverging epoch must not flatten all the others."""
    curves = [np.asarray(line.get_ydata()) for line in axes.lines]
    values = np.concatenate(curves) if curves else np.zeros(0)
    if values.size and values.min() > 0 and values.max() > 20 * np.median(values):
        axes.set_yscale("log")


def _mark_best(
    loss: Axes, accuracy: Axes, epochs: np.ndarray, values: np.ndarray
) -> None:
    if not len(epochs):
        return
    best = int(np.argmax(values))
    epoch, percent = epochs[best], 100 * values[best]
    for axes in (loss, accuracy) if len(epochs) > 1 else ():
        axes.axvline(epoch, color=_PALE, linewidth=0.8, dashes=(4, 3), zorder=1)
    accuracy.plot(
        epoch, percent, "o", color=_RED, markersize=6, markeredgecolor="white", zorder=5
    )
    # Towards the middle of the panel, under the curves, which have flattened there.
    centre = (epochs[0] + epochs[-1]) / 2
    right = epoch > centre
    accuracy.annotate(
        f"best {percent:.2f}%\nepoch {epoch:.0f}",
        (epoch, 0.06),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if right else 6, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="bottom",
        fontsize=9,
        color=_RED,
    )


def _wrap(title: str) -> str:
    lines = [w for line in title.splitlines() for w in textwrap.wrap(line, 19)]
    return "\n".join(lines[:4])


def _write_counts(axes: Axes, confusion: np.ndarray, share: np.ndarray) -> None:
    """Counts in the cells; zeros stay blank, so that the errors stand out."""
    digits = len(str(confusion.max()))
    size = 8.5 if digits <= 4 else 6.5
    for row, column in np.argwhere(confusion):
        colour = "white" if share[row, column] > 0.55 else _INK
        axes.text(
            column,
            row,
            str(confusion[row, column]),
            ha="center",
            va="center",
            fontsize=size,
            color=colour,
        )


def _label_classes(axes: Axes, class_names: Sequence[str]) -> None:
    C = len(class_names)
    every = -(-C // _MAX_LABELS)
    ticks = np.arange(0, C, every)
    names = [_shorten(class_names[int(t)]) for t in ticks]
    size = 9 if C <= _MAX_CELLS else 7.5
    text = {"fontsize": size, "parse_math": False, "color": _INK}
    axes.set_yticks(ticks, names, **text)
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, names, **slanted, **text)
    axes.tick_params(length=0 if every == 1 else 3, color=_PALE)
    axes.spines[:].set_color(_PALE)
    axes.set_ylabel("true", color=_INK)
    axes.set_xlabel("predicted", color=_INK)
