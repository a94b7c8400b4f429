"""Figures that a run of any task draws: curves, filters and images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxattn.text import in_words
from jaxattn.viz.backend import default_look
from jaxattn.viz.figure import (
    BLUE,
    GREEN,
    INK,
    PALE,
    RED,
    draw_grid,
    integer_ticks,
    log_scale,
    marked,
    new_figure,
    show_image,
    style_axes,
    title_axes,
    wrap,
)

# Of a history: label, suffix of the key, colour. EMA shares the validation's data.
_CURVES = (
    ("train", "train_{}", BLUE),
    ("validation", "val_{}", RED),
    ("validation, EMA", "val_{}_ema", GREEN),
)
_MAX_FILTERS = 256
_COLUMN = 1.2  # inches of an image in a grid
_LABEL_SIZE = 7


@default_look
def plot_history(
    history: Sequence[Mapping[str, Any]], metric: str, others: Sequence[str] = ()
) -> Figure:
    """Draws the loss and a metric of training and validation over the epochs.

    Args:
        history: One mapping per epoch with `epoch`, `train_loss`, `train_METRIC`
            and, where there is a validation, `val_loss`, `val_METRIC`, `val_loss_ema`
            and `val_METRIC_ema`. Absent, None and non-finite values are left out.
        metric: Of the task, such as "accuracy"; in [0, 1], the higher the better.
        others: Further figures in [0, 1], each with a panel before the metric's.

    Returns:
        A figure of two panels or more; the epoch best by `val_METRIC` is marked.
    """
    names = ("loss", *others, metric)
    figure = new_figure(4.8 * len(names), 3.6)
    panels = figure.subplots(1, len(names))
    left, right = panels[0], panels[-1]
    for axes, name in zip(panels, names, strict=True):
        scale = 1 if name == "loss" else 100
        for label, key, colour in _CURVES:
            epochs, values = epoch_series(history, key.format(name))
            if len(epochs):
                style = {"color": colour, **marked(len(epochs))}
                axes.plot(epochs, scale * values, label=label, linewidth=1.5, **style)
        style_axes(axes)
        draw_grid(axes)
        axes.set_xlabel("epoch")
        integer_ticks(axes)
        title = in_words(name)
        unit = "" if name == "loss" else " (%)"
        title_axes(axes, f"{title[0].upper()}{title[1:]}{unit}")
    _log_scale_if_spiked(left)
    _mark_best(left, right, *epoch_series(history, f"val_{metric}"))
    if any(axes.lines for axes in panels[1:]):
        left.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


@default_look
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
    style = {"color": BLUE, "linewidth": 1.5, **marked(int(finite.sum()))}
    axes.plot(steps[finite], rates[finite], **style)
    positive = rates[finite & (rates > 0)]
    if len(positive) and positive.max() > 100 * positive.min():
        log_scale(axes, "y", positive)
    style_axes(axes)
    draw_grid(axes)
    axes.set_xlabel("step")
    integer_ticks(axes)
    title_axes(axes, "Learning rate")
    return figure


@default_look
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


@default_look
def plot_images(
    images: np.ndarray, titles: Sequence[str], *, columns: int = 8
) -> Figure:
    """Draws a grid of images with a label under each.

    Args:
        images: uint8 [N, H, W, C], C = 1 (grey) or 3; N at least 1.
        titles: N labels; a line that is too long for its image is wrapped once, and
            loses its middle if that is not enough.
        columns: Images per row.

    Returns:
        The figure; small images are enlarged without interpolation.

    Raises:
        ValueError: If there is no image, or not one title per image.
    """
    N, H, W, _ = images.shape
    if N == 0 or len(titles) != N:
        raise ValueError(f"{N} images with {len(titles)} titles; need N >= 1 of each")
    columns = min(columns, N)
    rows = -(-N // columns)
    width_pt = 72 * _COLUMN - 8  # less what keeps neighbours apart
    labels = [
        "\n".join(wrap(line, width_pt, _LABEL_SIZE) for line in title.splitlines())
        for title in titles
    ]
    lines = max(label.count("\n") + 1 for label in labels)
    figure = new_figure(
        _COLUMN * columns, rows * (_COLUMN * H / W + 0.13 * lines + 0.14), pad=0.04
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, label in zip(grid.flat, images, labels, strict=False):
        show_image(axes, image)
        axes.set_xlabel(
            label, fontsize=_LABEL_SIZE, color=INK, labelpad=3, parse_math=False
        )
    return figure


def epoch_series(
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
        log_scale(axes, "y", values)


def _mark_best(
    loss: Axes, metric: Axes, epochs: np.ndarray, values: np.ndarray
) -> None:
    if not len(epochs):
        return
    best = int(np.argmax(values))
    epoch, percent = epochs[best], 100 * values[best]
    for axes in (loss, metric) if len(epochs) > 1 else ():
        axes.axvline(epoch, color=PALE, linewidth=0.8, dashes=(4, 3), zorder=1)
    metric.plot(
        epoch, percent, "o", color=RED, markersize=6, markeredgecolor="white", zorder=5
    )
    # Towards the middle of the panel, under the curves, which have flattened there.
    centre = (epochs[0] + epochs[-1]) / 2
    right = epoch > centre
    metric.annotate(
        f"best {percent:.2f}%\nepoch {epoch:.0f}",
        (epoch, 0.06),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if right else 6, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="bottom",
        fontsize=9,
        color=RED,
    )
