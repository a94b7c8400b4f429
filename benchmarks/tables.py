"""The tables of README.md and docs/results.md, made from records alone.

`replace_tables` writes what stands between `<!-- table:NAME -->` and `<!-- /table -->`.
"""

import json
import math
import pathlib
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import timing
from benchmarks.rows import (
    BASELINE_OF,
    FIGURES,
    GROUPS,
    ROOT,
    ROWS,
    Record,
    figure_of,
    is_done,
)
from jaxattn.errors import choose
from jaxattn.studies import compare

NAMES = (*GROUPS, "summary", "speed")
"""Every table: one of each group, and the two of the README."""

_SUMMARISED = ("cifar10", "best", "cpu")
_SPEED = ROOT / "benchmarks" / "results" / "torch_cpu.json"
_NOTHING = "No run is recorded yet."


def format_table(names: Iterable[str], records: Mapping[str, list[Record]]) -> str:
    """Returns a table of rows against what is published, as Markdown.

    Args:
        names: Of the rows; those without a record are left out.
        records: Of every row.
    """
    names = [name for name in names if any(records.get(name, []))]
    lines = [_line(name, records.get(name, [])) for name in names]
    columns = ["run", "epochs", "n", "accuracy", "published", "difference", "time"]
    if all(ROWS[name].published is None for name in names):
        columns = [c for c in columns if c not in ("published", "difference")]
    rows = [[line.get(column, "") for column in columns] for line in lines]
    return compare.markdown_table(columns, rows)


def _line(name: str, records: list[Record]) -> dict[str, str]:
    """Returns the cells of a row that are not empty, by column."""
    row, done = ROWS[name], list(filter(is_done, records))
    line = {"run": f"`{name}`"}
    if row.published is not None:
        kind = "" if row.figure == "test_accuracy" else f" ({FIGURES[row.figure]})"
        line["published"] = f"{row.published:.2f} %{kind}"
    if not done:
        return {**line, "accuracy": _progress(records)}
    shares = [figure_of(record, row.figure) for record in done]
    if row.published is not None:
        gap = 100 * statistics.fmean(shares) - row.published
        line["difference"] = f"{gap:+.2f}"
    return {
        **line,
        "epochs": str(done[0]["epochs"]),
        "n": str(len(done)),
        "accuracy": compare.format_accuracy(shares),
        "time": _mean_time(done),
    }


def _mean_time(done: Iterable[Record]) -> str:
    seconds = statistics.fmean(record["wall_time_s"] for record in done)
    return compare.format_time(seconds)


def _progress(records: list[Record]) -> str:
    """Says how far the runs of a row are of which none is finished."""
    record = max(filter(None, records), key=lambda record: record["epochs_done"])
    text = f"cut short at epoch {record['epochs_done']} of {record['epochs']}"
    last = record["history"][-1] if record["history"] else {}
    validation = last.get("val_accuracy")
    return text if validation is None else f"{text}, validation {validation:.2%}"


def format_study(
    names: Sequence[str], baseline: str, records: Mapping[str, list[Record]]
) -> str:
    """Returns a table of rows against one of them, as Markdown.

    Args:
        names: Of the rows; those without a record are left out.
        baseline: The row that the others are compared with.
        records: Of every row.
    """
    header = ("run", "parameters", "MACs", "n", "test accuracy")
    header += ("difference", "images/s", "time")
    base = _accuracies(records.get(baseline, []))
    lines = []
    for name in names:
        if not any(records.get(name, [])):
            continue
        done = list(filter(is_done, records[name]))
        if not done:
            progress = _progress(records[name])
            lines.append((f"`{name}`", "", "", "", progress, "", "", ""))
            continue
        shares = _accuracies(done)
        speeds = [record["images_per_s"] or math.nan for record in done]
        lines.append(
            (
                f"`{name}`",
                *(f"{done[0][key]:,}" for key in ("num_params", "num_macs")),
                *(str(len(done)), compare.format_accuracy(shares)),
                "" if name == baseline else _difference(shares, base),
                f"{statistics.fmean(speeds):,.0f}",
                _mean_time(done),
            )
        )
    return compare.markdown_table(header, lines)


def _accuracies(records: Iterable[Record]) -> list[float]:
    return [record["test_accuracy"] for record in records if is_done(record)]


def _difference(shares: Sequence[float], base: Sequence[float]) -> str:
    """Returns the difference of two means in points, and its standard error."""
    if not base:
        return ""
    (ours, std), (theirs, base_std) = map(compare.mean_and_std, (shares, base))
    text = f"{100 * (ours - theirs):+.2f}"
    if std is None or base_std is None:
        return text
    error = math.sqrt(std**2 / len(shares) + base_std**2 / len(base))
    return f"{text} ± {100 * error:.2f}"


def format_group(group: str, records: Mapping[str, list[Record]]) -> str:
    """Returns the table of a group and what its figures were measured with."""
    names = [name for name, row in ROWS.items() if row.group == group]
    if not any(any(records.get(name, [])) for name in names):
        return _NOTHING
    if group in BASELINE_OF:
        table = format_study(names, BASELINE_OF[group], records)
    else:
        table = format_table(names, records)
    return "\n\n".join([table, *_format_machines(names, records)])


def _format_machines(
    names: Iterable[str], records: Mapping[str, list[Record]]
) -> list[str]:
    done = [r for name in names for r in records.get(name, []) if is_done(r)]
    runs = [compare.as_run(r["config"], r, r["history"]) for r in done]
    lines = {
        f"{run.machine}, {record['config'].get('dtype', 'float32')}"
        for run, record in zip(runs, done, strict=True)
    }
    return ["\n".join(f"- {line}" for line in sorted(lines))] if lines else []


def format_summary(records: Mapping[str, list[Record]]) -> str:
    """Returns the finished rows of whole recipes, with the recipe of each."""
    columns = ("network", "recipe", "epochs", "accuracy", "published", "time")
    lines = []
    for group in _SUMMARISED:
        for name in (n for n, row in ROWS.items() if row.group == group):
            if done := list(filter(is_done, records.get(name, []))):
                line = _line(name, done)
                line |= {"network": f"`{done[0]['model']}`"}
                line |= {"recipe": f"`{ROWS[name].config}`"}
                lines.append(line)
    if not any("published" in line for line in lines):
        columns = tuple(c for c in columns if c != "published")
    rows = [[line.get(column, "") for column in columns] for line in lines]
    return compare.markdown_table(columns, rows) if rows else _NOTHING


def format_speed(results: Mapping[str, Any]) -> str:
    """Returns the speed of training steps beside PyTorch's, images per second.

    Args:
        results: Of `compare_torch.py`.
    """
    columns = ("network", "pixels, batch", "jaxattn", "PyTorch", "ratio")
    rows = []
    for row in results["rows"]:
        work, timings = row["work"], row["timings"]
        ours, theirs = (
            f"{timing.median(timings[name]):,.3g}"
            for name in timing.fastest_sides(timings)
        )
        shape = f"{work['image_size']}, {work['batch_size']}"
        rows.append([f"`{work['model']}`", shape, ours, theirs, f"{row['ratio']:.2f}"])
    return compare.markdown_table(columns, rows)


def replace_tables(text: str, records: Mapping[str, list[Record]]) -> str:
    """Returns a text with the tables between its markers made anew.

    Args:
        text: With `<!-- table:NAME -->` and `<!-- /table -->` around every table.
        records: Of every row.

    Raises:
        UserError: If a marker names no table.
    """

    def table(match: re.Match[str]) -> str:
        name = match[1]
        choose("table", name, NAMES)
        if name == "summary":
            body = format_summary(records)
        elif name == "speed":
            body = format_speed(json.loads(_SPEED.read_text()))
        else:
            body = format_group(name, records)
        return f"<!-- table:{name} -->\n\n{body}\n\n<!-- /table -->"

    pattern = r"<!-- table:(\w+) -->\n.*?<!-- /table -->"
    return re.sub(pattern, table, text, flags=re.DOTALL)
