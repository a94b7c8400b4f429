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
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image

from jaxattn.atomic import write_atomically

INK = "#333333"
_PALE = "#9a9a9a"
BLUE = "#4477aa"
_RED = "#cc5544"
_GREEN = "#228866"

# Of a history: label, suffix of the key, colour. EMA shares the validation's data.
_CURVES = (
    ("train", "train_{}", BLUE),
    ("validation", "val_{}", _RED),
    ("validation, EMA", "val_{}_ema", _GREEN),
)

# Of networks that are compared, told apart by colour-blind readers, too (Paul Tol).
_SERIES = ("#4477aa", "#cc5544", "#228866", "#ccaa33", "#66bbdd", "#aa3377", "#777777")

_MAX_LABELS = 25  # tick labels along one side that remain legible
_MAX_CELLS = 20  # classes up to which every cell carries its count
_MAX_BARS = 30  # classes
_MAX_FILTERS = 256
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
    figure = new_figure(9.6, 3.6)
    loss, accuracy = figure.subplots(1, 2)
    for axes, metric, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for label, key, colour in _CURVES:
            epochs, values = _series(history, key.format(metric))
            if len(epochs):
                # A line of few points is not visible without its points.
                marker = "o" if len(epochs) <= 15 else ""
                style = {"color": colour, "marker": marker, "markersize": 3.5}
                axes.plot(epochs, scale * values, label=label, linewidth=1.5, **style)
        style_axes(axes)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
        if len({row["epoch"] for row in history}) == 1:
            axes.set_xticks([history[0]["epoch"]])
    title_axes(loss, "Loss")
    title_axes(accuracy, "Accuracy (%)")
    _log_scale_if_spiked(loss)
    _mark_best(loss, accuracy, *_series(history, "val_accuracy"))
    if accuracy.lines:
        loss.legend(frameon=False, fontsize=9, labelcolor=INK)
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
    figure = new_figure(side + 1.6, side + 0.9)
    axes = figure.subplots()
    norm = PowerNorm(0.5 if C > _MAX_CELLS else 1.0, vmin=0, vmax=1)
    mesh = axes.imshow(share, cmap="Blues", norm=norm, interpolation="nearest")
    if C <= _MAX_CELLS:
        _write_counts(axes, confusion, share)
    _label_classes(axes, class_names)
    total = int(confusion.sum())
    title_axes(axes, f"{np.trace(confusion) / max(total, 1):.2%} of {total:,} correct")
    bar = figure.colorbar(mesh, ax=axes, shrink=0.6, aspect=25, pad=0.02)
    bar.set_label("share of the true class", color=INK, fontsize=9)
    bar.set_ticks([0, 0.1, 0.5, 1] if C > _MAX_CELLS else [0, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    bar.ax.tick_params(length=0, labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    return figure


def plot_learning_rate(steps: np.ndarray, rates: np.ndarray) -> Figure:
    """Draws the learning rate over the training steps.

    Args:
        steps: int [M].
        rates: float [M]; what is not finite is left out.

    Returns:
        A figure; on a logarithmic scale if the rate changes more than a hundredfold.
    """
    figure = new_figure(5.4, 3.2)
    axes = figure.subplots()
    steps, rates = np.asarray(steps), np.asarray(rates, float)
    finite = np.isfinite(rates)
    marker = "o" if finite.sum() <= 15 else ""
    axes.plot(
        steps[finite], rates[finite], color=BLUE, marker=marker, markersize=3.5, lw=1.5
    )
    positive = rates[finite & (rates > 0)]
    if len(positive) and positive.max() > 100 * positive.min():
        axes.set_yscale("log")
    style_axes(axes)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    title_axes(axes, "Learning rate")
    return figure


def plot_class_accuracy(
    accuracy: np.ndarray, support: np.ndarray, class_names: Sequence[str]
) -> Figure:
    """Draws the accuracy of every class as bars, the lowest at the bottom.

    Args:
        accuracy: float [C], of the examples of each true class, in [0, 1].
        support: int [C], those examples; a class without any is left out.
        class_names: C names.

    Returns:
        A figure of at most 30 classes, those of lowest accuracy; its title says so.
    """
    accuracy, support = np.asarray(accuracy), np.asarray(support)
    order = np.argsort(accuracy, kind="stable")
    order = order[support[order] > 0]
    shown = order[:_MAX_BARS]
    figure = new_figure(5.4, 0.9 + 0.2 * len(shown))
    axes = figure.subplots()
    values = 100 * accuracy[shown]
    bars = axes.barh(np.arange(len(shown)), values, color=BLUE, height=0.75)
    labels = [f"{value:.1f}" for value in values]
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # not the mean
    axes.bar_label(bars, labels, padding=3, fontsize=8, color=INK, bbox=behind)
    names = [f"{shorten(class_names[int(i)])} ({support[i]:,})" for i in shown]
    axes.set_yticks(np.arange(len(shown)), names, parse_math=False)
    style_axes(axes)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.set_xlim(0, 108)  # room for the label of a full bar
    axes.set_xticks([0, 25, 50, 75, 100])
    mean = 100 * float(accuracy[order].mean()) if len(order) else 0.0
    axes.axvline(mean, color=_RED, linewidth=1, dashes=(4, 3))
    axes.set_xlabel("accuracy (%), examples in brackets")
    least = f", lowest {len(shown)} of {len(order)}" if len(shown) < len(order) else ""
    title_axes(axes, f"Accuracy by class (mean {mean:.1f} %{least})")
    return figure


def plot_filters(kernel: np.ndarray, name: str) -> Figure:
    """Draws the filters of a convolution as a grid of small images.

    Args:
        kernel: float [K, K, C, O]; as colours if C is 3, else the mean over C in grey.
        name: Of the layer.

    Returns:
        A figure of the first 256 filters. All share one scale, on which 0 is grey.
    """
    kernel = np.asarray(kernel, np.float32)[..., :_MAX_FILTERS]
    K, _, C, O = kernel.shape  # noqa: E741
    kernel = kernel if C == 3 else np.repeat(kernel.mean(2, keepdims=True), 3, 2)
    most = np.abs(kernel).max()
    tiles = 0.5 + kernel.transpose(3, 0, 1, 2) / (2 * most or 1)
    columns = min(O, 16)
    rows = -(-O // columns)
    # One image, not one axes a filter: these take a second for 30.
    grid = np.ones((rows * columns, K + 1, K + 1, 3), np.float32)
    grid[:O, :K, :K] = tiles
    grid = grid.reshape(rows, columns, K + 1, K + 1, 3).swapaxes(1, 2)
    picture = grid.reshape(rows * (K + 1), columns * (K + 1), 3)[:-1, :-1]
    figure = new_figure(0.4 * max(columns, 10), 0.4 * rows + 0.4)
    axes = figure.subplots()
    axes.imshow(picture, interpolation="nearest")
    axes.set_axis_off()
    text = f"{name}: {O} filters of {K} x {K}, largest weight {most:.3g}"
    title_axes(axes, text, size=9)
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
    figure = new_figure(
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
        axes.set_xlabel(label, fontsize=7, color=INK, labelpad=3, parse_math=False)
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

    figure = new_figure(4.4, 5.0)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bar = {"width": 1 / B, "align": "edge", "edgecolor": "white", "linewidth": 0.8}
    top.bar(left, accuracy, color=BLUE, label="accuracy", **bar)
    top.plot([0, 1], [0, 1], color=_PALE, linewidth=1, dashes=(4, 3), zorder=2)
    # A segment from each bin's accuracy to where its confidence says it should be.
    top.vlines(confidence, accuracy, confidence, color=_RED, linewidth=1.2, zorder=3)
    dots = {"color": _RED, "markersize": 4, "linestyle": "", "zorder": 4}
    top.plot(confidence, confidence, marker="o", label="confidence", **dots)
    top.set_ylim(0, 1)
    top.legend(frameon=False, fontsize=9, loc="upper left", labelcolor=INK)
    bottom.bar(left, count[filled], color=_PALE, **bar)
    bottom.set_xlim(0, 1)
    bottom.set_xlabel("confidence")
    bottom.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    bottom.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    title_axes(top, f"Reliability   (ECE {error:.1%})")
    title_axes(bottom, f"Examples   ({count.sum():,})", size=9)
    style_axes(top)
    style_axes(bottom)
    return figure


def plot_comparison(
    labels: Sequence[str],
    costs: Sequence[float],
    accuracies: Sequence[Sequence[float]],
    histories: Sequence[Sequence[Sequence[Mapping[str, Any]]]],
) -> Figure:
    """Draws networks' accuracy against their cost, and how validation got there.

    Args:
        labels: G names.
        costs: of each, multiply-accumulates of an image.
        accuracies: of each, the test accuracy of every seed, in [0, 1].
        histories: of each, for every seed one mapping per epoch with `epoch` and,
            where there is a validation, `val_accuracy`.

    Returns:
        A figure of two panels: a dot for every seed and a bar at the mean; and the mean
        over the seeds in a band from the lowest to the highest.
    """
    figure = new_figure(9.6, 4.2)
    cost, epochs = figure.subplots(1, 2)
    groups = zip(labels, costs, accuracies, histories, strict=True)
    for i, (label, x, shares, runs) in enumerate(groups):
        colour, dashes = (
            _SERIES[i % len(_SERIES)],
            ("-", "--", ":")[i // len(_SERIES) % 3],
        )
        percent = 100 * np.array(shares, float)
        dots = {"color": colour, "markersize": 5, "alpha": 0.6, "linestyle": ""}
        cost.plot(np.full(len(percent), x), percent, marker="o", **dots)
        bar = {"color": colour, "markersize": 16, "markeredgewidth": 2, "zorder": 4}
        cost.plot(x, percent.mean(), marker="_", **bar)
        _draw_band(epochs, runs, color=colour, linestyle=dashes)
        # The legend's line, also of one without a validation.
        epochs.plot([], [], color=colour, linestyle=dashes, label=label)
    cost.set_xlabel("multiply-accumulates an image")
    if max(costs) > 4 * min(costs):
        cost.set_xscale("log")
    else:
        cost.margins(x=0.12)
        cost.xaxis.set_major_locator(MaxNLocator(5))
    cost.xaxis.set_major_formatter(EngFormatter(sep=" "))
    epochs.set_xlabel("epoch")
    epochs.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    for axes in (cost, epochs):
        style_axes(axes)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    title_axes(cost, "Test accuracy (%)")
    title_axes(epochs, "Validation accuracy (%)")
    legend = figure.legend(
        loc="outside lower center",
        ncols=min(3, len(labels)),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _draw_band(
    axes: Axes, runs: Sequence[Sequence[Mapping[str, Any]]], **style: Any
) -> None:
    """Draws the mean of the seeds' curves, and where they are, over common epochs."""
    curves = [dict(zip(*_series(run, "val_accuracy"), strict=True)) for run in runs]
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not common:
        return
    percent = 100 * np.array([[curve[e] for e in common] for curve in curves])
    axes.plot(common, percent.mean(axis=0), linewidth=1.5, **style)
    if len(curves) > 1:
        band = {"color": style["color"], "alpha": 0.18, "linewidth": 0}
        axes.fill_between(common, percent.min(axis=0), percent.max(axis=0), **band)


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
    figure = new_figure(width, height)
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
        axes.set_ylabel(panel.y_label, color=INK)
        title_axes(axes, panel.title, size=10)
        style_axes(axes)
    if any(band.label for band in panels[0][0].bands):
        grid[0, 0].legend(frameon=False, fontsize=9, labelcolor=INK)
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


def new_figure(width: float, height: float, pad: float = 0.08) -> Figure:
    """A figure of inches `width` and `height`, laid out when it is drawn."""
    layout = ConstrainedLayoutEngine(w_pad=pad, h_pad=pad)
    figure = Figure(figsize=(width, height), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes) -> None:
    """Gives axes the look of all figures."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_PALE)
    axes.tick_params(colors=INK, labelsize=9, length=3, color=_PALE)
    axes.xaxis.label.set_color(INK)
    axes.set_axisbelow(True)


def shorten(name: str, limit: int = 22) -> str:
    """Cuts the middle out of a long name: names often differ only at their ends."""
    return name if len(name) <= limit else f"{name[: limit - 9]}…{name[-8:]}"


def title_axes(axes: Axes, text: str, size: float = 11) -> None:
    """Writes a title at the left; not for names, which may hold a `$`."""
    axes.set_title(text, loc="left", fontsize=size, color=INK)


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
        colour = "white" if share[row, column] > 0.55 else INK
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
    names = [shorten(class_names[int(t)]) for t in ticks]
    size = 9 if C <= _MAX_CELLS else 7.5
    text = {"fontsize": size, "parse_math": False, "color": INK}
    axes.set_yticks(ticks, names, **text)
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, names, **slanted, **text)
    axes.tick_params(length=0 if every == 1 else 3, color=_PALE)
    axes.spines[:].set_color(_PALE)
    axes.set_ylabel("true", color=INK)
    axes.set_xlabel("predicted", color=INK)
