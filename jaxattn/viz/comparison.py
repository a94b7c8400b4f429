"""Figures that set runs side by side: networks, and bands of curves."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from jaxattn.text import in_words
from jaxattn.viz.backend import default_look
from jaxattn.viz.figure import (
    INK,
    PALE,
    draw_grid,
    integer_ticks,
    log_scale,
    marked,
    new_figure,
    style_axes,
    title_axes,
)
from jaxattn.viz.runs import epoch_series

# Of networks that are compared, told apart by colour-blind readers, too (Paul Tol).
_SERIES = ("#4477aa", "#cc5544", "#228866", "#ccaa33", "#66bbdd", "#aa3377", "#777777")


@default_look
def plot_comparison(
    labels: Sequence[str],
    costs: Sequence[float],
    figures: Sequence[Sequence[float]],
    histories: Sequence[Sequence[Sequence[Mapping[str, Any]]]],
    metric: str = "accuracy",
) -> Figure:
    """Draws networks' test figure against their cost, and how validation got there.

    Args:
        labels: G names.
        costs: Of each, multiply-accumulates of an image.
        figures: Of each, the figure of every seed on the test split, in [0, 1].
        histories: Of each, for every seed one mapping per epoch with `epoch` and,
            where there is a validation, `val_METRIC`.
        metric: The key of the figure.

    Returns:
        A figure of two panels: a dot for every seed and a bar at the mean; and the mean
        over the seeds in a band from the lowest to the highest.
    """
    figure = new_figure(9.6, 4.2)
    cost, epochs = figure.subplots(1, 2)
    groups = zip(labels, costs, figures, histories, strict=True)
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
        _draw_band(epochs, runs, f"val_{metric}", color=colour, linestyle=dashes)
        # The legend's line, also of one without a validation.
        epochs.plot([], [], color=colour, linestyle=dashes, label=label)
    cost.set_xlabel("multiply-accumulates an image")
    if max(costs) > 4 * min(costs):
        log_scale(cost, "x", costs)
    else:
        cost.xaxis.set_major_locator(MaxNLocator(5))
    cost.margins(x=0.12)
    cost.xaxis.set_major_formatter(EngFormatter(sep=" "))
    epochs.set_xlabel("epoch")
    if any(len(line.get_xdata()) for line in epochs.lines):  # pyright: ignore
        integer_ticks(epochs)
    else:
        epochs.set(xticks=[], yticks=[])
        middle = {"ha": "center", "va": "center", "transform": epochs.transAxes}
        epochs.text(0.5, 0.5, "no validation", color=PALE, **middle)
    for axes in (cost, epochs):
        style_axes(axes)
        draw_grid(axes)
    title_axes(cost, f"Test {in_words(metric)} (%)")
    title_axes(epochs, f"Validation {in_words(metric)} (%)")
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
    axes: Axes, runs: Sequence[Sequence[Mapping[str, Any]]], key: str, **style: Any
) -> None:
    """Draws the mean of the seeds' curves, and where they are, over common epochs."""
    series = [epoch_series(run, key) for run in runs]
    curves = [dict(zip(epochs, values, strict=True)) for epochs, values in series]
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not common:
        return
    percent = 100 * np.array([[curve[e] for e in common] for curve in curves])
    style |= marked(len(common))
    axes.plot(common, percent.mean(axis=0), linewidth=1.5, **style)
    if len(curves) > 1:
        low, high = percent.min(axis=0), percent.max(axis=0)
        _fill(axes, np.array(common), low, high, color=style["color"], alpha=0.18)


def _fill(
    axes: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, **style: Any
) -> None:
    """Fills what is between two curves; between two points it is a bar."""
    if len(x) == 1:
        axes.vlines(x, low, high, linewidth=5, **style)
    else:
        axes.fill_between(x, low, high, linewidth=0, **style)


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


@default_look
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
            style |= marked(len(band.x), 3)
            axes.plot(band.x, band.high, label=band.label, alpha=band.alpha, **style)
            if band.low is not band.high:
                axes.plot(band.x, band.low, alpha=band.alpha, **style)
                _fill(axes, band.x, band.low, band.high, color=band.colour, alpha=0.3)
        if panel.log:
            drawn = [np.ravel([band.low, band.high]) for band in panel.bands]
            log_scale(axes, "y", np.concatenate(drawn))
        integer_ticks(axes)
        if panel.x_limits is not None:
            axes.set_xlim(*panel.x_limits)
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label, color=INK)
        title_axes(axes, panel.title, size=10)
        style_axes(axes)
    if any(band.label for band in panels[0][0].bands):
        grid[0, 0].legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure
