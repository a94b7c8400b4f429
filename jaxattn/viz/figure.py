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
from collections.abc import Callable, Iterable
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
from matplotlib.textpath import text_to_path
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from PIL import Image

from jaxattn.atomic import write_atomically
from jaxattn.text import escaped
from jaxattn.viz.backend import default_look

INK = "#333333"
PALE = "#9a9a9a"
BLUE = "#4477aa"
PALE_BLUE = "#c3d3e3"
RED = "#cc5544"
GREEN = "#228866"
# Of a file. A page of photographs has half of it.
_MAX_BYTES = 2_000_000
_FEW_POINTS = 15  # of a line that is not visible, or hardly, without its points
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


def marked(count: int, size: float = 3.5) -> dict[str, Any]:
    """Returns the style of a line's points: none where there are many of them."""
    return {"marker": "o" if count <= _FEW_POINTS else "", "markersize": size}


def integer_ticks(axes: Axes) -> None:
    """Puts the horizontal axis's ticks at whole numbers, as steps and epochs are.

    Call it after the lines are drawn.
    """
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    drawn = {float(x) for line in axes.lines for x in np.ravel(line.get_xdata())}
    if len(drawn) == 1:  # the locator would put fractions about it
        axes.set_xticks(list(drawn))


def log_scale(axes: Axes, name: str, values: Iterable[float]) -> None:
    """Makes an axis logarithmic, with ticks that have room.

    Args:
        axes: Its axes.
        name: "x" or "y".
        values: What is drawn along it; what is not above 0 is left out.
    """
    positive = [v for v in values if np.isfinite(v) and v > 0]
    decades = np.log10(max(positive) / min(positive)) if positive else 0.0
    axes.set(**{f"{name}scale": "log"})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[name]
    axis.set_minor_formatter(NullFormatter())
    if decades < 2:
        # Powers of ten alone would be one tick, or none.
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades > 0.5 else "all"))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_locator(NullLocator())


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
    """Cuts the middle out of a long name: names often differ only at their ends.

    Args:
        name: Which may hold any character.
        limit: The room there is, in letters of a usual width.
    """
    name = legible(name)  # before, for escapes are long
    room = limit * _width("abcdefghijklmnopqrstuvwxyz") / 26
    shown, count = name, min(len(name), limit)
    while len(shown) > 4 and (len(shown) > limit or _width(shown) > 1.1 * room):
        tail = min(8, count // 3)
        shown = f"{name[: count - tail - 1]}…{name[len(name) - tail :]}"
        count -= 1
    return shown


def wrap(text: str, width_pt: float, size: float, most_lines: int = 2) -> str:
    """Breaks a line into some that fit, and cuts out the middle if they are too many.

    Args:
        text: One line.
        width_pt: What there is room for, in points.
        size: Of the font.
        most_lines: Lines at most.
    """
    text = legible(text)
    lines, limit = _broken(text, width_pt, size), len(text)
    while len(lines) > most_lines and limit > 4:
        limit -= 1
        lines = _broken(shorten(text, limit), width_pt, size)
    return "\n".join(lines)


def _broken(text: str, width_pt: float, size: float) -> list[str]:
    """Breaks a text between words, or within one that is too wide by itself."""
    lines = [""]
    for word in re.findall(r"[^\s_-]+[\s_-]*|[\s_-]+", text):
        if lines[-1] and _width(lines[-1] + word.rstrip(), size) > width_pt:
            lines.append("")
        for letter in word:
            if lines[-1] and _width(lines[-1] + letter.strip(), size) > width_pt:
                lines.append("")
            lines[-1] += letter
    return [line.rstrip() for line in lines]


@functools.lru_cache(4096)
def _width(text: str, size: float = 10.0) -> float:
    """The width of a text in points, as it is drawn."""
    font = FontProperties(family=_families(text), size=size)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]


def legible(text: str) -> str:
    """Returns a text with what no font here has written as Python escapes it."""
    if text.isascii():
        return text
    lacking = {c for c in text if _font_with(c) is None}
    if lacking:
        _tell()
    return "".join(escaped(c) if c in lacking else c for c in text)


@default_look
def figure_to_array(figure: Figure) -> np.ndarray:
    """Renders a figure to uint8 [H, W, 3], at the figure's own resolution.

    Characters that the font lacks are drawn in another one that is installed, or else
    written as Python escapes them.
    """
    canvas = FigureCanvasAgg(figure)
    _make_legible(figure)
    canvas.draw()
    # Laid out again it would move a little: what is drawn twice should be the same.
    figure.set_layout_engine("none")
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG, whole or not at all.

    A picture over 2 MB (a large page of photographs) gets fewer pixels.

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
    scale = 0.8
    while len(data) > _MAX_BYTES and scale > 0.25:
        size = (round(image.width * scale), round(image.height * scale))
        data = _png(image.resize(size, Image.Resampling.LANCZOS))
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
    families = _families(shown)
    if families != rcParams["font.family"]:
        for text in texts:
            text.set_fontfamily(families)
        for axis in axes:
            axis.set_tick_params(labelfontfamily=families)


def _families(text: str) -> list[str]:
    """The usual families of fonts, and those of what they lack of a text."""
    others = {font for character in {*text} if (font := _font_with(character))}
    return [*rcParams["font.family"], *sorted(others)]


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
