"""Figures of detection: boxes over photos, and precision by recall."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from jaxattn.viz.backend import default_look
from jaxattn.viz.figure import (
    INK,
    PALE,
    draw_grid,
    hide_frame,
    legible,
    new_figure,
    shorten,
    style_axes,
    title_axes,
)

# Told apart on photographs, and in print; then they repeat.
_COLORS = (
    *("#ff5a36", "#1f9bff", "#ffd400", "#14c26b", "#e45bd0", "#00d5d5"),
    *("#ff9d1e", "#8c6bff", "#a8e400", "#c98b5c"),
)
_MOST_NAMED = 10  # classes with a place in the legend
_PANEL_INCHES = 3.0
_LABEL_SIZE = 5.5
_ROOM = 12  # pixels that a label needs


class BoxPanel(NamedTuple):
    """A photo with boxes.

    Attributes:
        image: uint8 `[H, W, 3]`.
        boxes: `[n, 4]`: x1, y1, x2, y2, pixels.
        colors: Of each box.
        labels: Written at each box; "" is nothing.
        dashed: Which boxes are dashed, bool `[n]`.
        title: Above the photo.
    """

    image: np.ndarray
    boxes: np.ndarray
    colors: Sequence[str]
    labels: Sequence[str]
    dashed: Sequence[bool]
    title: str


def class_color(k: int) -> str:
    """Returns the colour of the boxes of class `k`."""
    return _COLORS[k % len(_COLORS)]


def colors_repeat(num_classes: int) -> bool:
    """Returns whether several of so many classes have one colour."""
    return num_classes > len(_COLORS)


@default_look
def plot_boxes(
    panels: Sequence[BoxPanel], legend: Sequence[tuple[str, str]], *, columns: int
) -> Figure:
    """Draws photos with boxes.

    Args:
        panels: The photos, at least one.
        legend: Colours and what they mean; the first ten are shown.
        columns: Photos in a row.
    """
    if not panels:
        raise ValueError("no photo; need at least one")
    rows = -(-len(panels) // columns)
    ratio = max(panel.image.shape[0] / panel.image.shape[1] for panel in panels)
    height = rows * (_PANEL_INCHES * ratio + 0.22) + 0.3
    figure = new_figure(_PANEL_INCHES * columns, height, pad=0.04)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel)
    handles = [
        Line2D([], [], color=color, linewidth=2, label=shorten(text))
        for color, text in legend[:_MOST_NAMED]
    ]
    if handles:
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=min(len(handles), 2 * columns),
            fontsize=8,
            frameon=False,
            labelcolor=INK,
        )
    return figure


def _draw_panel(axes: Axes, panel: BoxPanel) -> None:
    axes.set_axis_on()
    axes.imshow(panel.image, interpolation="antialiased")
    hide_frame(axes)
    title_axes(axes, panel.title, size=8)
    H, W = panel.image.shape[:2]
    rows = zip(panel.boxes, panel.colors, panel.labels, panel.dashed, strict=True)
    for (x1, y1, x2, y2), color, label, is_dashed in rows:
        style: Any = {"linestyle": (0, (3, 2))} if is_dashed else {}
        # Pixels' centres are whole numbers to Matplotlib, here their corners are.
        corner = (x1 - 0.5, y1 - 0.5)
        rectangle = Rectangle(
            corner,
            x2 - x1,
            y2 - y1,
            fill=False,
            edgecolor=color,
            linewidth=1.1,
            **style,
        )
        axes.add_patch(rectangle)
        if label:
            # Of dashed ones below, where another's does not cover it.
            y = y2 if is_dashed else y1
            is_above = y > H - _ROOM if is_dashed else y > _ROOM
            axes.text(
                x1,
                y,
                label,
                fontsize=_LABEL_SIZE,
                color="black",
                va="bottom" if is_above else "top",
                parse_math=False,
                bbox={"facecolor": color, "edgecolor": "none", "pad": 0.6},
            )
    axes.set(xlim=(-0.5, W - 0.5), ylim=(H - 0.5, -0.5))


def draw_boxes(
    photo: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[str],
) -> Image.Image:
    """Returns a photo with labelled boxes, pixel by pixel, as an image of Pillow.

    Args:
        photo: uint8 `[H, W, C]`, C = 1 (grey) or 3.
        boxes: `[n, 4]`: x1, y1, x2, y2, pixels; the last ones are drawn first.
        labels: Of each box.
        colors: Of each box.
    """
    pixels = np.repeat(photo, 3, axis=-1) if photo.shape[-1] == 1 else photo
    image = Image.fromarray(np.ascontiguousarray(pixels))
    draw = ImageDraw.Draw(image)
    side = max(image.size)
    width, size = max(1, round(side / 400)), max(10, round(side / 55))
    font = ImageFont.truetype(findfont(FontProperties()), size)
    rows = list(zip(boxes.tolist(), labels, colors, strict=True))
    for (x1, y1, x2, y2), label, color in reversed(rows):
        draw.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), None, color, width)
        text = legible(label)
        _, _, right, bottom = draw.textbbox((0, 0), text, font=font)
        left = max(0, min(x1, image.width - right - 2))
        top = y1 - bottom - 2 if y1 > bottom + 2 else y1
        draw.rectangle((left, top, left + right + 2, top + bottom + 2), color)
        draw.text((left + 1, top + 1), text, "black", font=font)
    return image


@default_look
def plot_precision_recall(
    precision: np.ndarray, class_ap: np.ndarray, class_names: Sequence[str]
) -> Figure:
    """Draws the precision of each class by recall, at IoU 0.5.

    Args:
        precision: float `[R, K]` at R equal steps of recall from 0 to 1; NaN for a
            class that is not there.
        class_ap: float `[K]`, the area under each, NaN likewise.
        class_names: The name of each class, at least K.

    Returns:
        The figure; of many classes the curves are pale, and the mean is drawn.
    """
    recall = np.linspace(0, 1, len(precision))
    known = np.flatnonzero(~np.isnan(class_ap)).tolist()
    figure = new_figure(4.8, 4.2)
    axes = figure.subplots()
    are_few = len(known) <= _MOST_NAMED
    for k in known:
        named = {"color": class_color(k), "linewidth": 1.6}
        named["label"] = f"{shorten(class_names[k])}  {class_ap[k]:.3f}"
        style = named if are_few else {"color": PALE, "linewidth": 0.5, "alpha": 0.6}
        axes.plot(recall, precision[:, k], **style)
    if len(known) > 1:
        mean = precision[:, known].mean(1)
        label = f"mean of {len(known)}  {class_ap[known].mean():.3f}"
        axes.plot(recall, mean, color=INK, linewidth=1.6, dashes=(4, 2), label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall")
    title_axes(axes, "Precision by recall, at IoU 0.5 (AP50)")
    if len(known):
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower left")
    style_axes(axes)
    draw_grid(axes)
    return figure
