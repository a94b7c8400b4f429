"""What all figures share: their look, their pixels and their files.

Figures are built with the object interface: pyplot would keep them alive in global
state and could open a display. Names of classes are drawn literally
(`parse_math=False`), since a `$` in one would otherwise be read as mathematics.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import Image

from jaxattn.atomic import write_atomically
from jaxattn.viz.backend import default_look

INK = "#333333"
PALE = "#9a9a9a"
BLUE = "#4477aa"
RED = "#cc5544"
GREEN = "#228866"
_MAX_BYTES = 200_000


def new_figure(width: float, height: float, pad: float = 0.08) -> Figure:
    """A figure of inches `width` and `height`, laid out when it is drawn."""
    layout = ConstrainedLayoutEngine(w_pad=pad, h_pad=pad)
    figure = Figure(figsize=(width, height), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes) -> None:
    """Gives axes the look of all figures."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, labelsize=9, length=3, color=PALE)
    axes.xaxis.label.set_color(INK)
    axes.set_axisbelow(True)


def draw_grid(axes: Axes) -> None:
    """Draws pale lines at the ticks of the vertical axis."""
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)


def integer_ticks(axes: Axes) -> None:
    """Puts the horizontal axis's ticks at whole numbers, as steps and epochs are."""
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))


def show_image(axes: Axes, image: np.ndarray) -> None:
    """Draws an image without ticks and frame.

    Args:
        axes: Where.
        image: uint8 `[H, W, C]`, C = 1 (grey) or 3; a small one is enlarged without
            interpolation.
    """
    H, W, C = image.shape
    image = np.repeat(image, 3, axis=-1) if C == 1 else image
    # Photographs are reduced, and nearest-neighbour would alias them.
    interpolation = "nearest" if max(H, W) <= 128 else "antialiased"
    axes.set_axis_on()
    axes.imshow(image, interpolation=interpolation)
    hide_frame(axes)


def hide_frame(axes: Axes) -> None:
    """Leaves ticks and frame out, but not the labels."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def title_axes(axes: Axes, text: str, size: float = 11) -> None:
    """Writes a title at the left; not for names, which may hold a `$`."""
    axes.set_title(text, loc="left", fontsize=size, color=INK)


def shorten(name: str, limit: int = 22) -> str:
    """Cuts the middle out of a long name: names often differ only at their ends."""
    return name if len(name) <= limit else f"{name[: limit - 9]}…{name[-8:]}"


@default_look
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
        figure: The figure.
        path: The file; its directory exists.

    Raises:
        OSError: If it cannot be written; names the path.
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
