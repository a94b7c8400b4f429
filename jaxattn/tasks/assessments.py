"""What is written of an assessment, whichever task: its files are the same."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxattn import viz
from jaxattn.atomic import write_atomically, write_json


def write_files(
    folder: pathlib.Path,
    results: Mapping[str, Any],
    text: str,
    draw: Callable[[], Mapping[str, Any]],
) -> None:
    """Writes `results.json`, `report.txt` and the figures.

    Args:
        folder: Where to; it is there.
        results: Entries of `results.json`.
        text: Of the report.
        draw: Returns Matplotlib figures by the name of their file, without its ending.
            Called last: a figure that cannot be drawn takes no result with it.
    """
    write_json(folder / "results.json", results)
    write_atomically(folder / "report.txt", text)
    for name, figure in draw().items():
        viz.save_figure(figure, folder / f"{name}.png")
