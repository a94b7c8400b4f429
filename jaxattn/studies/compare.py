"""Compares finished runs: figures over seeds, cost, speed and what differs."""

import csv
import dataclasses
import io
import itertools
import json
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxattn.config.changes import config_of, flatten, is_harmless
from jaxattn.config.record import read_record
from jaxattn.errors import UserError, reraise_machine_fault
from jaxattn.studies.trials import progress_of
from jaxattn.text import in_words
from jaxattn.training.records.writer import history, read_metrics

_LAST = "last_test_"  # before the task's figure, in every run's results
_NEEDED = ("model", "num_params", "num_macs", "seed", "epochs", "versions", "device")


class UnfinishedError(UserError):
    """A run that has begun and has no results yet."""


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run and what came of it.

    Attributes:
        config: Its values by dotted key: those that decide its weights, but the seed.
        results: Content of `results.json`.
        history: One row for each epoch.
    """

    config: dict[str, Any]
    results: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def metric(self) -> str:
        """The key of the task's figure, such as "accuracy"."""
        keys = (key for key in self.results if key.startswith(_LAST))
        return next(keys).removeprefix(_LAST)

    @property
    def machine(self) -> str:
        """What it ran on, and by which versions."""
        device, host = self.results["device"], self.results.get("host")
        where = f"{device} ({host})" if host else device
        versions = (f"{name} {v}" for name, v in self.results["versions"].items())
        return f"{where}; {', '.join(versions)}"


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        label: What tells the group from the others.
        runs: In the order of their seeds.
    """

    label: str
    runs: tuple[FinishedRun, ...]

    @property
    def metric(self) -> str:
        """The key of the task's figure."""
        return self.runs[0].metric

    @property
    def validation(self) -> list[float]:
        """The figure on the validation split for each seed; none without one."""
        return self.values(f"best_val_{self.metric}")

    def values(self, key: str) -> list[float]:
        """Returns a figure of `results.json` for each seed; none if a run lacks it."""
        values = [run.results.get(key) for run in self.runs]
        return [] if None in values else values  # pyright: ignore[reportReturnType]


def read_run(workdir: pathlib.Path) -> FinishedRun:
    """Reads the finished run of a workdir.

    Raises:
        UnfinishedError: If it is not finished.
        UserError: If the folder holds no run.
    """
    if not (workdir / "config.json").exists():
        raise UserError(f"workdir {workdir}: holds no run (no config.json)")
    try:
        config = read_record(workdir / "config.json")
        if not (workdir / "results.json").exists():
            done, of = progress_of(workdir)
            raise UnfinishedError(
                f"workdir {workdir}: not finished, epoch {done} of {of}"
            )
        results = json.loads((workdir / "results.json").read_text())
        return as_run(config, results, history(read_metrics(workdir)))
    except OSError as error:
        reraise_machine_fault(error)
        why = error.strerror
        raise UserError(f"{error.filename}: cannot be read ({why})") from error
    except (LookupError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"workdir {workdir}: not a run's ({error!r})") from error


def as_run(
    config: Mapping[str, Any], results: dict[str, Any], rows: list[dict[str, Any]]
) -> FinishedRun:
    """Returns a finished run from the contents of its files.

    Args:
        config: Of `config.json`.
        results: Of `results.json`.
        rows: One for each epoch.

    Raises:
        KeyError: If the results lack a figure.
    """
    for key in _NEEDED:
        results[key]
    names = [key.removeprefix(_LAST) for key in results if key.startswith(_LAST)]
    for metric in names or ["accuracy"]:
        for key in (f"test_{metric}", f"{_LAST}{metric}", f"test_{metric}_ema"):
            results[key]
    kept = {
        key: value
        for key, value in flatten(config_of(config)).items()
        if not is_harmless(key)
    }
    kept.pop("seed", None)
    return FinishedRun(kept, results, rows)


def group_runs(runs: Iterable[FinishedRun]) -> list[Group]:
    """Groups runs whose configs differ in the seed alone, in their first's order.

    Raises:
        UserError: If two runs are of one config and seed, or of two tasks.
    """
    runs = list(runs)
    if len(metrics := sorted({run.metric for run in runs})) > 1:
        raise UserError(
            f"the runs are of several tasks, by {' and '.join(metrics)}: compare those"
            " of one"
        )
    grouped: dict[str, list[FinishedRun]] = {}
    for run in runs:
        key = json.dumps(_known(run.config), sort_keys=True, default=str)
        grouped.setdefault(key, []).append(run)
    labels = _make_labels([runs[0] for runs in grouped.values()])
    groups = []
    for label, members in zip(labels, grouped.values(), strict=True):
        members.sort(key=lambda run: run.results["seed"])
        for one, other in itertools.pairwise(members):
            if one.results["seed"] == other.results["seed"]:
                seed = one.results["seed"]
                raise UserError(
                    f"{label}: two runs of this config have the seed {seed}"
                )
        groups.append(Group(label, tuple(members)))
    return groups


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out keys at their placeholder, which configs of earlier versions lack."""
    return {key: value for key, value in config.items() if value is not None}


def _make_labels(runs: Sequence[FinishedRun]) -> list[str]:
    """Names each config by its network and the fewest keys that tell it from others."""
    labels = [run.results["model"] for run in runs]
    for name in dict.fromkeys(labels):
        alike = [i for i, run in enumerate(runs) if run.results["model"] == name]
        for i, values in zip(
            alike, _telling([runs[i].config for i in alike]), strict=True
        ):
            labels[i] = ", ".join([name, *values])
    return labels


def _telling(configs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns for each config "key=value" of the fewest keys that tell all apart.

    Of keys that tell equally many apart, one of the network comes first.
    """
    keys = sorted(
        differing_keys(configs), key=lambda key: (not key.startswith("model."), key)
    )
    chosen: list[str] = []

    def count(keys: Iterable[str]) -> int:
        return len({tuple(str(config.get(key)) for key in keys) for config in configs})

    while keys and count(chosen) < len(configs):
        chosen.append(max(keys, key=lambda key: count([*chosen, key])))
    short = {key: key.rsplit(".", 1)[-1] for key in chosen}
    return [[f"{short[key]}={config.get(key)}" for key in chosen] for config in configs]


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the keys whose values are not the same in all configs, sorted."""
    keys = sorted({key for config in configs for key in config})
    return [
        key for key in keys if len({str(config.get(key)) for config in configs}) > 1
    ]


# Tables ----------------------------------------------------------------------------


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns mean and sample standard deviation, which one value does not have."""
    return statistics.fmean(values), statistics.stdev(values) if values[1:] else None


def format_accuracy(shares: Sequence[float]) -> str:
    """Returns shares as `61.20 ± 0.85 %`; nothing if there are none."""
    if not shares:
        return ""
    mean, std = mean_and_std([100 * share for share in shares])
    return f"{mean:.2f} %" if std is None else f"{mean:.2f} ± {std:.2f} %"


def format_time(seconds: float) -> str:
    """Returns a training time as seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def format_range(values: Sequence[float]) -> str:
    """Returns a number that all values are, or the least and the largest one."""
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def best_of(groups: Sequence[Group]) -> Group | None:
    """Returns the group of the highest mean validation figure, the first of equals.

    Those of the test choose nothing: the chosen one's would be too good. None if no
    group has a validation split.
    """
    known = [group for group in groups if group.validation]
    return max(
        known, key=lambda group: statistics.fmean(group.validation), default=None
    )


def _shown(metric: str) -> dict[str, str]:
    """The figures of a table and their headers, by their keys in `results.json`."""
    return {
        f"best_val_{metric}": "validation",
        f"test_{metric}": f"test {in_words(metric)}",
        f"{_LAST}{metric}": "last weights",
        f"test_{metric}_ema": "averaged weights",
    }


def format_markdown(groups: Sequence[Group], best: Group | None = None) -> str:
    """Returns the comparison as Markdown: table, machines, and what differs.

    Args:
        groups: At least one.
        best: That of them which is marked as the best by its validation figure.
    """
    metric = groups[0].metric
    names, words = _shown(metric), in_words(metric)
    shown = [key for key in names if any(group.values(key) for group in groups)]
    header = (
        *("network", "data", "n", *(names[key] for key in shown)),
        *("parameters", "MACs", "images/s", "time", "epochs"),
    )
    rows = [_cells(group, shown, is_best=group is best) for group in groups]
    runs = [run for group in groups for run in group.runs]
    seeds = sorted({run.results["seed"] for run in runs})
    parts = [
        markdown_table(header, rows),
        f"Test {words} of the weights best by validation (of the last ones without a"
        " validation split); mean ± sample standard deviation over n seeds, of"
        f" {', '.join(map(str, seeds))}. Time of training a run, evaluations included.",
        *([f"**best**: by the mean of its validation {words}."] if best else []),
        *(f"- {machine}" for machine in dict.fromkeys(run.machine for run in runs)),
        *_format_differences(groups),
    ]
    return "\n\n".join(parts) + "\n"


def _cells(group: Group, shown: Sequence[str], *, is_best: bool) -> tuple[str, ...]:
    first = group.runs[0].results
    speeds, times = group.values("images_per_s"), group.values("wall_time_s")
    return (
        f"`{group.label}`" + (" **best**" if is_best else ""),
        *(first.get("data", ""), str(len(group.runs))),
        *(format_accuracy(group.values(key)) for key in shown),
        *(f"{first['num_params']:,}", f"{first['num_macs']:,}"),
        f"{statistics.fmean(speeds):,.0f}" if speeds else "",
        format_time(statistics.fmean(times)) if times else "",
        format_range(group.values("epochs")),
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; a `|` inside a cell is escaped."""
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def _format_differences(groups: Sequence[Group]) -> list[str]:
    configs = [group.runs[0].config for group in groups]
    keys = differing_keys(configs)
    if not keys:
        return []
    shown = [{key: str(v) for key, v in _known(config).items()} for config in configs]
    rows = [(f"`{key}`", *(config.get(key, "") for config in shown)) for key in keys]
    header = ("What differs", *(f"`{group.label}`" for group in groups))
    return [markdown_table(header, rows)]


def format_csv(groups: Sequence[Group]) -> str:
    """Returns the comparison as CSV: one line a group, figures in [0, 1]."""
    buffer = io.StringIO()
    rows = [_csv_row(group) for group in groups]
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _csv_row(group: Group) -> dict[str, Any]:
    first = group.runs[0].results
    row = {
        "network": group.label,
        "data": first.get("data"),
        "n": len(group.runs),
        "seeds": " ".join(str(run.results["seed"]) for run in group.runs),
    }
    for key in _shown(group.metric):
        values = group.values(key)
        mean, std = mean_and_std(values) if values else (None, None)
        row |= {f"{key}_mean": mean, f"{key}_std": std}
    for key in ("images_per_s", "wall_time_s"):
        values = group.values(key)
        row[f"{key}_mean"] = statistics.fmean(values) if values else None
    machines = dict.fromkeys(run.machine for run in group.runs)
    return row | {
        **{key: first[key] for key in ("num_params", "num_macs")},
        "epochs": format_range(group.values("epochs")),
        "machines": " / ".join(machines),
    }


def plot(groups: Sequence[Group]) -> Any:
    """Returns the picture: figure against cost, and validation over the epochs."""
    # Late: runs are read and recorded without pictures.
    from jaxattn.viz.comparison import plot_comparison

    return plot_comparison(
        [group.label for group in groups],
        [group.runs[0].results["num_macs"] for group in groups],
        [group.values(f"test_{group.metric}") for group in groups],
        [[run.history for run in group.runs] for group in groups],
        groups[0].metric,
    )
