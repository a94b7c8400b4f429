"""The published accuracies, and studies of our own, run by run.

    python benchmarks/reproduce.py --group attention_cpu --minutes 30 --data DIR
    python benchmarks/reproduce.py --rows canet canet_tiny --data DIR --dtype bfloat16
    python benchmarks/reproduce.py --tables

A row is a recipe with its seeds. Every run trains in a process of its own and in a
folder of its own, in `--out`; its record, with command, commit, versions, hardware and
curve, goes to `benchmarks/results/runs`. Repeat the command to go on: what is done is
skipped, what the budget has cut short continues. `--minutes 0` trains nothing and
records what there is, such as the runs of `gpu_suite.py`. `--tables` makes the tables
of README.md from the records alone.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from jaxattn import host
from jaxattn.atomic import write_atomically
from jaxattn.config.file import load_config
from jaxattn.errors import UserError, choose
from jaxattn.studies import compare, trials
from jaxattn.studies.bn_landscape import make_run_config
from jaxattn.studies.trials import Outcome, Trial
from jaxattn.training.records.writer import history, read_metrics

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "runs"
Record = dict[str, Any]

# Less time is not worth a run's start.
_LEAST_S = 60.0
# Before the budget's end, so that the run can save in it.
_SAVE_S = 15.0
_VGG_RATE = 1e-3  # whose accuracies the report of the study gives


# Rows ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table.

    Attributes:
        group: The table.
        config: A config file with its argument.
        network: Of that config's study of batch normalisation, whose run it is.
        overrides: Of the recipe, as `num_epochs=20`.
        seeds: One run each.
        published: The figure it is to reproduce, in percent; None without one.
        figure: Which of ours that is.
    """

    group: str
    config: str
    network: str | None = None
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (42,)
    published: float | None = None
    figure: str = "test_accuracy"


FIGURES = {
    "test_accuracy": "test",
    "best_val_accuracy_ema": "best validation, averaged weights",
    "test_accuracy_ema": "test, averaged weights",
    "last_test_accuracy": "test, last weights",
}
"""What a row's figure is called in the table."""

GROUPS = ("cifar10", "cpu", "best", "attention_cpu")
"""The tables: whole recipes, shorter ones for CPUs, our own, a study of attention."""


def _canet(variant: str, published: float) -> Row:
    config = f"configs/canet.py:{variant}"
    return Row(group="cifar10", config=config, published=published)


def _baseline(name: str, published: float) -> Row:
    config = f"configs/baselines.py:{name}"
    return Row(group="cifar10", config=config, published=published)


def _vgg(network: str, published: float) -> Row:
    return Row(
        group="cifar10",
        config="configs/vgg_bn.py",
        network=network,
        seeds=(2020,),
        published=published,
        figure="last_test_accuracy",
    )


def _best(variant: str) -> Row:
    config = f"configs/best.py:{variant}"
    return Row(group="best", config=config, seeds=(0,), figure="test_accuracy_ema")


def _attention(variant: str) -> Row:
    config = f"configs/attention_study.py:{variant}"
    return Row(group="attention_cpu", config=config, seeds=(0, 1, 2))


ROWS = {
    # The report of CANet, the baselines in its table included.
    "canet_tiny": _canet("tiny", 88.66),
    "canet_light": _canet("light", 91.56),
    "canet": _canet("base", 93.50),
    "canet_pro": _canet("pro", 93.56),
    "resnet18": _baseline("resnet18", 93.00),
    "resnet34": _baseline("resnet34", 93.56),
    "mobilenet_v2": _baseline("mobilenet_v2", 84.14),
    "shufflenet_v2_x0_5": _baseline("shufflenet_v2_x0_5", 62.66),
    "vgg11": _baseline("vgg11", 85.75),
    # Attention-Enhanced ResNet: the best of its validations, on augmented images.
    "enhanced_efficient_resnet": Row(
        group="cifar10",
        config="configs/cbam_resnet.py",
        overrides=("augment.validation=True",),
        published=95.30,
        figure="best_val_accuracy_ema",
    ),
    # The loss-landscape study of CANet's authors, at one of its learning rates.
    "vgg_a": _vgg("vgg_a", 75.81),
    "vgg_a_bn": _vgg("vgg_a_bn", 84.29),
    # Nothing is published for these.
    "sccnet18": Row(group="cifar10", config="configs/sccnet.py:18_cifar"),
    "resnet18_scsa": Row(group="cifar10", config="configs/scsa.py:resnet18_cifar"),
    "canet_tiny_20_epochs": Row(
        group="cpu",
        config="configs/canet.py:tiny",
        # The learning rate falls to where it does in 70 epochs.
        overrides=("num_epochs=20", "schedule.decay_rate=0.867"),
    ),
    "enhanced_efficient_resnet_5000": Row(
        group="cpu",
        config="configs/cbam_resnet.py",
        # In 800 steps the average must forget sooner than in 176,000.
        overrides=(
            *("num_epochs=20", "data.max_train_examples=5000"),
            *("ema.decay=0.98", "ema.batch_stats=average"),
        ),
    ),
    "best_gpu": _best("gpu"),
    "best_cpu": _best("cpu"),
    "attention_none": _attention("none"),
    "attention_cbam": _attention("cbam"),
    "attention_eca": _attention("eca"),
    "attention_scsa": _attention("scsa"),
    "attention_scc": _attention("scc"),
}
"""All rows by name, in their tables' order."""

_BASELINE_OF = {"attention_cpu": "attention_none"}


def select_rows(names: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Returns the rows of the given names and groups.

    Raises:
        UserError: If there is none of a name.
    """
    for name in names:
        choose("--rows", name, ROWS)
    for group in groups:
        choose("--group", group, GROUPS)
    return [n for n, row in ROWS.items() if n in names or row.group in groups]


# Runs ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """One seed of a row.

    Attributes:
        row: Its name.
        trial: How it is trained.
        command: That trains the same.
    """

    row: str
    trial: Trial
    command: str


def make_runs(
    row: str, data: str, out: pathlib.Path, dtype: str | None = None
) -> list[Run]:
    """Returns the runs of a row.

    Args:
        row: Its name.
        data: CIFAR-10, as `data.path`; downloaded if empty.
        out: Folder of the workdirs.
        dtype: Of the computation; the recipe's by default.
    """
    config, network = ROWS[row].config, ROWS[row].network
    runs = []
    for seed in ROWS[row].seeds:
        overrides = (f"seed={seed}", *ROWS[row].overrides)
        overrides += (f"dtype={dtype}",) if dtype else ()
        flags = [f"--config.{override}" for override in overrides]
        local = ["--config.log.tensorboard=False"]
        local += [f"--config.data.path={data}"] if data else []
        name = f"{row}_seed{seed}"
        values = load_config(f"{ROOT / config}", [*flags, *local]).to_dict()
        command = f"python main.py --config {config} --workdir {name} {' '.join(flags)}"
        command += " --config.data.path=cifar-10-batches-py"
        if network is not None:  # no program of its own trains one run of the study
            values = make_run_config(values, network, _VGG_RATE)
            command = "python benchmarks/reproduce.py --data cifar-10-batches-py"
            command += f" --rows {row}"
        trial = Trial(
            name=name,
            config=values,
            workdir=(out / name).resolve(),
            may_differ=("dtype",),
        )
        runs.append(Run(row, trial, command))
    return runs


def reproduce(
    runs: Iterable[Run],
    results: pathlib.Path,
    deadline_s: float,
    train: Callable[..., Outcome] = trials.train,
) -> None:
    """Trains what is not done, and records what there is of every run.

    Args:
        runs: In their order.
        results: Folder of the records.
        deadline_s: When to end, by `time.monotonic`.
        train: Trains a trial until a `timeout_s`.

    Raises:
        UserError: If a run fails of a mistake.
    """
    results.mkdir(parents=True, exist_ok=True)
    for run in runs:
        name, trial = run.trial.name, run.trial
        if is_done(record := read_record(name, results)):
            trial.check_config(record["config"], _path(name, results))
            print(f"{name}: done before", flush=True)
            continue
        left_s = deadline_s - time.monotonic() - _SAVE_S
        outcome = Outcome("finished") if trial.is_finished() else None
        begun = outcome is None and left_s >= _LEAST_S
        if begun:
            print(f"{name}: at most {left_s / 60:.0f} minutes", flush=True)
            outcome = train(trial, timeout_s=left_s)
        if record := make_record(run, ran_here=begun):
            write_atomically(_path(name, results), json.dumps(record, indent=1) + "\n")
        print(f"{name}: {_describe(outcome, record)}", flush=True)
        if outcome and outcome.state == "mistake":
            raise UserError(f"{name}: {outcome.message}")


def _describe(outcome: Outcome | None, record: Record) -> str:
    """Returns one line about a run."""
    if is_done(record):
        return f"test accuracy {record['test_accuracy']:.2%}"
    if outcome and outcome.state in ("mistake", "failed"):
        return f"{outcome.state}: {outcome.message}"
    return f"epoch {record['epochs_done']}, to go on" if record else "no time left"


# Records ---------------------------------------------------------------------------


def make_record(run: Run, *, ran_here: bool = True) -> Record:
    """Returns what there is of a run; nothing if it has not begun.

    Args:
        run: The run.
        ran_here: Whether this machine has trained it, unless its results say which.
    """
    workdir = run.trial.workdir
    if not (workdir / "config.json").exists():
        return {}
    config = json.loads((workdir / "config.json").read_text())
    finished = workdir / "results.json"
    results = json.loads(finished.read_text()) if finished.exists() else {}
    done, of = trials.progress_of(workdir)
    record = {
        "row": run.row,
        "command": run.command,
        "commit": _commit(),
        "seed": config["seed"],
        "epochs": of,
        "epochs_done": done,
        "model": config["model"]["name"],
        "host": host.describe_cpu() if ran_here else None,
        "versions": config.pop("versions", {}),
        **results,
    }
    config["data"]["path"] = None  # of this machine
    return {**record, "config": config, "history": history(read_metrics(workdir))}


def _commit() -> str | None:
    """Returns the commit of the code, with a `+` if it was changed since."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", "jaxattn", "configs")
    except OSError:
        return None  # there is no git
    return f"{commit}{'+' if changed else ''}" or None


def is_done(record: Record) -> bool:
    """Returns whether a record is of a finished run."""
    return "test_accuracy" in record


def read_record(name: str, results: pathlib.Path) -> Record:
    """Returns the record of a run; empty if there is none."""
    path = _path(name, results)
    return json.loads(path.read_text()) if path.exists() else {}


def read_records(results: pathlib.Path) -> dict[str, list[Record]]:
    """Returns the records of every row, those that there are."""
    return {
        name: [
            record
            for seed in row.seeds
            if (record := read_record(f"{name}_seed{seed}", results))
        ]
        for name, row in ROWS.items()
    }


def _path(name: str, results: pathlib.Path) -> pathlib.Path:
    return results / f"{name}.json"


def figure_of(record: Record, figure: str) -> float:
    """Returns an accuracy of a finished run, one of `FIGURES`."""
    if figure == "best_val_accuracy_ema":
        return max(row["val_accuracy_ema"] for row in record["history"])
    return record[figure]


# Tables ----------------------------------------------------------------------------


def format_table(names: Iterable[str], records: Mapping[str, list[Record]]) -> str:
    """Returns a table of rows against what is published, as Markdown.

    Args:
        names: Of the rows.
        records: Of every row.
    """
    names = list(names)
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
    begun = list(filter(None, records))
    if not begun:
        return "not run yet"
    record = max(begun, key=lambda record: record["epochs_done"])
    text = f"cut short at epoch {record['epochs_done']} of {record['epochs']}"
    last = record["history"][-1] if record["history"] else {}
    validation = last.get("val_accuracy")
    return text if validation is None else f"{text}, validation {validation:.2%}"


def format_study(
    names: Sequence[str], baseline: str, records: Mapping[str, list[Record]]
) -> str:
    """Returns a table of rows against one of them, as Markdown.

    Args:
        names: Of the rows.
        baseline: The row that the others are compared with.
        records: Of every row.
    """
    header = ("run", "parameters", "MACs", "n", "test accuracy")
    header += ("difference", "images/s", "time")
    base = _accuracies(records.get(baseline, []))
    lines = []
    for name in names:
        done = list(filter(is_done, records.get(name, [])))
        if not done:
            progress = _progress(records.get(name, []))
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
    if group in _BASELINE_OF:
        table = format_study(names, _BASELINE_OF[group], records)
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


def replace_tables(text: str, records: Mapping[str, list[Record]]) -> str:
    """Returns a text with the tables between its markers made anew.

    Args:
        text: With `<!-- table:GROUP -->` and `<!-- /table -->` around every table.
        records: Of every row.

    Raises:
        UserError: If a marker names no group.
    """

    def table(match: re.Match[str]) -> str:
        choose("table", match[1], GROUPS)
        body = format_group(match[1], records)
        return f"<!-- table:{match[1]} -->\n\n{body}\n\n<!-- /table -->"

    pattern = r"<!-- table:(\w+) -->\n.*?<!-- /table -->"
    return re.sub(pattern, table, text, flags=re.DOTALL)


# The command -----------------------------------------------------------------------


def main() -> None:
    """Runs rows, and writes tables."""
    host.prepare()
    args = _parse()
    try:
        deadline_s = time.monotonic() + 60 * args.minutes
        names = select_rows(args.rows, args.group)
        if not names and not args.tables:
            raise UserError("nothing to do: give --rows, --group or --tables")
        runs = [
            run
            for name in names
            for run in make_runs(name, args.data, args.out, args.dtype)
        ]
        reproduce(runs, RESULTS, deadline_s)
        if args.tables:
            readme = ROOT / "README.md"
            text = replace_tables(readme.read_text(), read_records(RESULTS))
            write_atomically(readme, text)
    except UserError as error:
        print(f"reproduce.py: {error}", file=sys.stderr)
        sys.exit(2)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", nargs="*", default=[], help=f"of {', '.join(ROWS)}")
    add("--group", nargs="*", default=[], help=f"of {', '.join(GROUPS)}")
    add("--minutes", type=float, default=60.0, help="of this call (60)")
    add("--data", default="", help="CIFAR-10, as --config.data.path (downloads)")
    add("--dtype", choices=("float32", "bfloat16"), help="the recipe's by default")
    add("--tables", action="store_true", help="makes README.md's tables anew")
    add(
        "--out",
        type=pathlib.Path,
        default=ROOT / "workdir" / "reproduce",
        help="folder of the workdirs (workdir/reproduce)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
