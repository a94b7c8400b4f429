"""A comparison of runs as files: where they go, and what they may replace."""

import contextlib
import itertools
import pathlib
from collections.abc import Sequence

from jaxattn.atomic import write_atomically
from jaxattn.errors import UserError
from jaxattn.studies.compare import Group, format_csv, format_markdown, plot

# How the files begin that a comparison makes, and may make anew; and its figure.
_STARTS = {
    "comparison.md": b"| network | data | n |",
    "comparison.csv": b"network,data,n,seeds,",
}
_PICTURE = "comparison.png"


def free_folder(folder: pathlib.Path) -> pathlib.Path:
    """Returns a folder that is not there yet: itself, or with a number from 2 on."""
    names = itertools.chain([""], (f"_{i}" for i in itertools.count(2)))
    folders = (folder.with_name(f"{folder.name}{name}") for name in names)
    return next(f for f in folders if not f.exists())


def require_own(out: pathlib.Path) -> None:
    """Checks that what `write_comparison` would replace is what it made.

    Raises:
        UserError: If a file of one of its names is something else.
    """
    is_compared = False
    for name, start in _STARTS.items():
        path = out / name
        if path.exists():
            with contextlib.suppress(OSError), open(path, "rb") as file:
                is_compared = file.read(len(start)) == start
            _require_own(path, is_compared)
    _require_own(out / _PICTURE, is_compared or not (out / _PICTURE).exists())


def _require_own(path: pathlib.Path, is_own: bool) -> None:
    if not is_own:
        raise UserError(
            f"{path}: is no comparison of jaxattn's, and is kept; name another folder"
        )


def write_comparison(
    out: pathlib.Path, groups: Sequence[Group], best: Group | None = None
) -> str:
    """Writes `comparison.md`, `comparison.csv` and `comparison.png`.

    Those that are there are replaced; see `require_own`.

    Args:
        out: Their folder, made if missing.
        groups: At least one.
        best: As `format_markdown` takes it.

    Returns:
        The Markdown.
    """
    from jaxattn.viz.figure import save_figure

    out.mkdir(parents=True, exist_ok=True)
    text = format_markdown(groups, best)
    write_atomically(out / "comparison.md", text)
    write_atomically(out / "comparison.csv", format_csv(groups))
    save_figure(plot(groups), out / _PICTURE)
    return text
