"""Figures of a classification: confusions, accuracy by class, reliability."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxattn.viz.backend import default_look
from jaxattn.viz.figure import (
    BLUE,
    INK,
    PALE,
    PALE_BLUE,
    RED,
    new_figure,
    shorten,
    style_axes,
    title_axes,
)

_MAX_LABELS = 25  # tick labels along one side that remain legible
_MAX_CELLS = 20  # classes up to which every cell carries its count
_MAX_BARS = 30  # classes
_FEW_EXAMPLES = 10  # of which an accuracy says little


@default_look
def plot_confusion_matrix(
    confusion: np.ndarray, class_names: Sequence[str], *, of_pixels: bool = False
) -> Figure:
    """Draws a confusion matrix, coloured by the share of each true class.

    Args:
        confusion: int [C, C], counts; rows are true classes, columns predicted ones.
        class_names: C names.
        of_pixels: Counts pixels, whose numbers say little: cells have percent of the
            true class.

    Returns:
        A figure with counts in the cells up to 20 classes; beyond that colours only,
        on a square-root scale so that rare confusions stay visible, and sparse labels.

    Raises:
        ValueError: If the shapes disagree.
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
        shown = np.round(100 * share).astype(int) if of_pixels else confusion
        _write_counts(axes, shown, share)
    _label_classes(axes, class_names)
    total = int(confusion.sum())
    right, what = np.trace(confusion) / max(total, 1), " pixels" if of_pixels else ""
    title_axes(axes, f"{right:.2%} of {total:,}{what} correct")
    bar = figure.colorbar(mesh, ax=axes, shrink=0.6, aspect=25, pad=0.02)
    unit = ", in percent in the cells" if of_pixels and C <= _MAX_CELLS else ""
    bar.set_label(f"share of the true class{unit}", color=INK, fontsize=9)
    bar.set_ticks([0, 0.1, 0.5, 1] if C > _MAX_CELLS else [0, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    bar.ax.tick_params(length=0, labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    return figure


@default_look
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
    support = np.asarray(support)
    names = [f"{shorten(n)} ({s:,})" for n, s in zip(class_names, support, strict=True)]
    text = "accuracy (%), examples in brackets"
    return plot_by_class(np.asarray(accuracy), support > 0, names, "Accuracy", text)


@default_look
def plot_by_class(
    values: np.ndarray,
    is_known: np.ndarray,
    names: Sequence[str],
    title: str,
    axis: str,
) -> Figure:
    """Draws a figure of every class as bars, the lowest at the bottom.

    Args:
        values: float [C] in [0, 1].
        is_known: bool [C]; other classes are left out.
        names: C names, as they are drawn.
        title: What is drawn, for the title.
        axis: The same, for the axis.

    Returns:
        A figure of at most 30 classes, those of lowest values; its title says so.
    """
    order = np.argsort(values, kind="stable")
    order = order[is_known[order]]
    shown = order[:_MAX_BARS]
    figure = new_figure(5.4, 0.9 + 0.2 * len(shown))
    axes = figure.subplots()
    percent = 100 * values[shown]
    bars = axes.barh(np.arange(len(shown)), percent, color=BLUE, height=0.75)
    labels = [f"{value:.1f}" for value in percent]
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # not the mean
    axes.bar_label(bars, labels, padding=3, fontsize=8, color=INK, bbox=behind)
    ticks = [names[int(i)] for i in shown]
    axes.set_yticks(np.arange(len(shown)), ticks, parse_math=False)
    style_axes(axes)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.set_xlim(0, 108)  # room for the label of a full bar
    axes.set_xticks([0, 25, 50, 75, 100])
    mean = 100 * float(values[order].mean()) if len(order) else 0.0
    axes.axvline(mean, color=RED, linewidth=1, dashes=(4, 3))
    axes.set_xlabel(axis)
    least = f", lowest {len(shown)} of {len(order)}" if len(shown) < len(order) else ""
    # Over the whole figure: beside long names the axes are narrow.
    text = f"{title} by class (mean {mean:.1f} %{least})"
    figure.suptitle(text, x=0.02, ha="left", fontsize=11, color=INK)
    return figure


@default_look
def plot_reliability(
    bin_confidence: np.ndarray, bin_accuracy: np.ndarray, bin_count: np.ndarray
) -> Figure:
    """Draws a reliability diagram over the counts of its bins.

    Args:
        bin_confidence: float [B], mean confidence of each of B equal bins of [0, 1].
        bin_accuracy: float [B], accuracy of each, in [0, 1].
        bin_count: int [B], examples in each; the values of empty bins are not read.

    Returns:
        A figure of two panels; the title gives the expected calibration error. The
        bars of bins with fewer than 10 examples, whose accuracy says little, are pale.
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
    is_few = count[filled] < _FEW_EXAMPLES
    for chosen, style, label in (
        (~is_few, {"color": BLUE}, "accuracy"),
        (is_few, {"color": PALE_BLUE}, f"accuracy of under {_FEW_EXAMPLES}"),
    ):
        if chosen.any():
            top.bar(left[chosen], accuracy[chosen], label=label, **style, **bar)
    top.plot([0, 1], [0, 1], color=PALE, linewidth=1, dashes=(4, 3), zorder=2)
    # A segment from each bin's accuracy to where its confidence says it should be.
    top.vlines(confidence, accuracy, confidence, color=RED, linewidth=1.2, zorder=3)
    dots = {"color": RED, "markersize": 4, "linestyle": "", "zorder": 4}
    top.plot(confidence, confidence, marker="o", label="confidence", **dots)
    top.set_ylim(0, 1)
    # Above the panel, where no bar can be.
    place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.98), "ncols": 3}
    small = {"handlelength": 1.2, "columnspacing": 1.0, "handletextpad": 0.5}
    top.legend(frameon=False, fontsize=8.5, labelcolor=INK, **place, **small)
    drawn = bottom.bar(left, count[filled], color=PALE, **bar)
    if count.max(initial=0) < 1000:  # more digits have no room
        bottom.bar_label(drawn, fontsize=6.5, color=INK, padding=1)
        bottom.margins(y=0.15)
    bottom.set_xlim(0, 1)
    bottom.set_xlabel("confidence")
    bottom.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    bottom.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.suptitle(
        f"Reliability   (ECE {error:.1%})", x=0.02, ha="left", fontsize=11, color=INK
    )
    title_axes(bottom, f"Examples   ({count.sum():,})", size=9)
    style_axes(top)
    style_axes(bottom)
    return figure


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
    axes.tick_params(length=0 if every == 1 else 3, color=PALE)
    axes.spines[:].set_color(PALE)
    axes.set_ylabel("true", color=INK)
    axes.set_xlabel("predicted", color=INK)
