"""The published accuracies, and studies of our own, run by run.

    python benchmarks/reproduce.py --group attention_cpu --minutes 30 --data DIR
    python benchmarks/reproduce.py --rows canet canet_tiny --data DIR --dtype bfloat16
    python benchmarks/reproduce.py --tables

A row is a recipe with its seeds. Every run trains in a process of its own and in a
folder of its own, in `--out`; its record, with command, commit, versions, hardware and
curve, goes to `benchmarks/results/runs`. Repeat the command to go on: what is done is
skipped, what the budget has cut short continues. `--minutes 0` trains nothing and
records what there is, such as the runs of `gpu_suite.py`. `--tables` makes the tables
of README.md and docs/results.md from the records alone.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import tables
from benchmarks.rows import (
    GROUPS,
    RESULTS,
    ROOT,
    ROWS,
    Record,
    is_done,
    read_record,
    read_records,
    record_path,
    select_rows,
)
from jaxattn import host
from jaxattn.atomic import write_atomically
from jaxattn.config.file import load_config
from jaxattn.errors import UserError
from jaxattn.studies import trials
from jaxattn.studies.bn_landscape import make_run_config
from jaxattn.studies.trials import Outcome, Trial
from jaxattn.training.records.writer import history, read_metrics

# Less time is not worth a run's start.
_LEAST_S = 60.0
# Before the budget's end, so that the run can save in it.
_SAVE_S = 15.0
_VGG_RATE = 1e-3  # whose accuracies the report of the study gives


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
            trial.check_config(record["config"], record_path(name, results))
            print(f"{name}: done before", flush=True)
            continue
        left_s = deadline_s - time.monotonic() - _SAVE_S
        outcome = Outcome("finished") if trial.is_finished() else None
        begun = outcome is None and left_s >= _LEAST_S
        if begun:
            print(f"{name}: at most {left_s / 60:.0f} minutes", flush=True)
            outcome = train(trial, timeout_s=left_s)
        if record := make_record(run, ran_here=begun):
            write_atomically(
                record_path(name, results), json.dumps(record, indent=1) + "\n"
            )
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
            records = read_records(RESULTS)
            for page in (ROOT / "README.md", ROOT / "docs" / "results.md"):
                text = tables.replace_tables(page.read_text(), records)
                write_atomically(page, text)
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
    add("--tables", action="store_true", help="makes the tables of results anew")
    add(
        "--out",
        type=pathlib.Path,
        default=ROOT / "workdir" / "reproduce",
        help="folder of the workdirs (workdir/reproduce)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
