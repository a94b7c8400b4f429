"""What all figures share: their look, their pixels and their files.

Figures are built with the object interface: pyplot would keep them alive in global
state and could open a display. Names of classes are drawn literally
(`parse_math=False`), since a `$` in one would otherwise be read as mathematics.
"""

import functools
import io
import logging
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import (
    FontEntry,
    FontProperties,
    findfont,
    fontManager,
    get_font,
)
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from jaxattn.atomic import write_atomically
from jaxattn.text import escaped

INK = "#333333"
PALE = "#9a9a9a"
BLUE = "#4477aa"
RED = "#cc5544"
GREEN = "#228866"
_MAX_BYTES = 200_000
_MANY_SCRIPTS = re.compile(
    r"CJK|^Noto Sans|^Noto Serif|WenQuanYi|Droid Sans|Unifont|Arial Unicode|Symbola"
    r"|PingFang|Hiragino|Heiti|Songti|Apple SD|AppleGothic|Geeza"
    r"|YaHei|SimHei|SimSun|JhengHei|Yu Gothic|Meiryo|MS Gothic|Malgun|Nanum|Segoe UI"
    r"|^IPA|Takao|Mukti|Lohit|FreeSans|FreeSerif|Emoji|STIX"
)

_logger = logging.getLogger(__name__)


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
    name = legible(name)  # before, for escapes are long
    return name if len(name) <= limit else f"{name[: limit - 9]}…{name[-8:]}"


def legible(text: str) -> str:
    """Returns a text with what no font here has written as Python escapes it."""
    if text.isascii():
        return text
    lacking = {c for c in text if _font_with(c) is None}
    if lacking:
        _tell()
    return "".join(escaped(c) if c in lacking else c for c in text)


def figure_to_array(figure: Figure) -> np.ndarray:
    """Renders a figure to uint8 [H, W, 3], at the figure's own resolution.

    Characters that the font lacks are drawn in another one that is installed, or else
    written as Python escapes them.
    """
    canvas = FigureCanvasAgg(figure)
    _make_legible(figure)
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


# Characters ------------------------------------------------------------------------


def _make_legible(figure: Figure) -> None:
    """Gives every text of a figure fonts that have its characters."""
    axes = [axis for a in figure.axes for axis in (a.xaxis, a.yaxis)]
    texts: list[Text] = figure.findobj(Text)  # pyright: ignore[reportAssignmentType]
    shown = "".join(text.get_text() for text in texts)
    for text in texts:
        text.set_text(legible(text.get_text()))
    for axis in axes:
        # The text of a tick is taken from here at every drawing.
        if isinstance(formatter := axis.get_major_formatter(), FuncFormatter):
            shown += "".join(formatter.format_ticks(list(axis.get_majorticklocs())))
            formatter.func = functools.partial(_legible_tick, formatter.func)
    fonts = {character: _font_with(character) for character in {*shown}}
    if families := sorted({font for font in fonts.values() if font}):
        families = [*rcParams["font.family"], *families]
        for text in texts:
            text.set_fontfamily(families)
        for axis in axes:
            axis.set_tick_params(labelfontfamily=families)


def _legible_tick(function: Callable[..., str], *of: Any) -> str:
    return legible(function(*of))


@functools.cache
def _tell() -> None:
    """Says once, by the cache, what escapes in pictures are."""
    _logger.warning(
        "no font here has all characters of the names: pictures show others in their"
        " place, such as %s; a font of many scripts, such as Noto Sans CJK, mends that",
        escaped("\u72ac"),
    )


@functools.cache
def _font_with(character: str) -> str | None:
    """The family of a font that has a character: "" the usual one, None if none has."""
    code = ord(character)
    if character.isspace() or code in _characters(findfont(FontProperties())):
        return ""
    return next((f.name for f in _fallbacks() if code in _characters(f.fname)), None)


@functools.cache
def _characters(path: str) -> frozenset[int]:
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):  # of a kind that Matplotlib does not draw
        return frozenset()


@functools.cache
def _fallbacks() -> list[FontEntry]:
    """Installed fonts that are known to have many scripts, one of a family."""
    known = {f.name: f for f in fontManager.ttflist if _MANY_SCRIPTS.search(f.name)}
    return [known[name] for name in sorted(known)]
