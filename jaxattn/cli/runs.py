"""Subcommands about several runs, or several checkpoints of one."""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxattn.atomic import require_writable
from jaxattn.cli.arguments import (
    Command,
    count,
    location,
    naming_data_options,
    path,
    seed,
)
from jaxattn.errors import UserError, require

if TYPE_CHECKING:  # imported where they are used
    from jaxattn.studies.compare import FinishedRun, Group
    from jaxattn.studies.trials import Trial

# Not within brackets: a value may be a tuple.
_COMMA = re.compile(r",(?![^(\[]*[)\]])")


def _compare(args: argparse.Namespace) -> int:
    from jaxattn.studies import compare, comparison, trials

    for flag, value in (("--root", args.root), ("--seeds", args.seeds)):
        only = "used with --configs alone"
        require(flag, value, bool(args.configs) or value is None, only)
    if not args.configs:
        if args.overrides:
            raise UserError(f"{args.overrides[0]}: used with --configs alone")
        out = args.out or comparison.free_folder(pathlib.Path("comparison"))
        comparison.require_own(out)
        groups = compare.group_runs(_read_finished(args.workdirs))
        return _report(out, groups, failures=[])
    require("--root", args.root, args.root is not None, "given with --configs")
    planned = trials.make_trials(
        args.configs, args.seeds or (), args.root, args.overrides
    )
    out = args.out or args.root  # beside its runs, to be made anew when they go on
    failures = _train_all(planned, out, ends_at_mistake=True)
    return _report(out, _group_finished(planned), failures)


def _sweep(args: argparse.Namespace) -> int:
    from jaxattn.studies import compare, trials

    grid = dict(args.grid)
    keys = [key for key, _ in args.grid]
    require("--grid", keys, len(grid) == len(keys), "each key once")
    seeds, out = args.seeds or (), args.workdir
    planned = trials.make_grid(args.config, grid, seeds, out, args.overrides)
    failures = _train_all(planned, out, ends_at_mistake=False)
    groups = _group_finished(planned)
    return _report(out, groups, failures, best=compare.best_of(groups))


def _group_finished(planned: "Sequence[Trial]") -> "list[Group]":
    """Returns what is finished, a group for each config."""
    from jaxattn.studies import compare

    done = [trial.workdir for trial in planned if trial.is_finished()]
    return compare.group_runs(map(compare.read_run, done))


def _report(
    out: pathlib.Path,
    groups: "Sequence[Group]",
    failures: Sequence[str],
    best: "Group | None" = None,
) -> int:
    """Writes the table of what is finished, and returns the exit code."""
    from jaxattn.studies import comparison

    if groups:
        print(comparison.write_comparison(out, groups, best))
        print(f"table and figure in {out}")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return int(bool(failures))


def _read_finished(workdirs: Sequence[pathlib.Path]) -> "list[FinishedRun]":
    """Reads the runs that are finished, and names the others."""
    from jaxattn.studies import compare

    runs = []
    for workdir in workdirs:
        try:
            runs.append(compare.read_run(workdir))
        except compare.UnfinishedError as error:
            print(f"{error}; left out", file=sys.stderr)
    if not runs:
        raise UserError("nothing to compare: none of the runs is finished")
    return runs


def _train_all(
    planned: "Sequence[Trial]", out: pathlib.Path, *, ends_at_mistake: bool
) -> list[str]:
    """Trains what is not finished, and returns what failed."""
    from jaxattn.studies import comparison, trials

    comparison.require_own(out)
    finished = [trial.is_finished() for trial in planned]  # all, before the first
    require_writable(out / "comparison.md")
    failures = []
    for i, (trial, is_done) in enumerate(zip(planned, finished, strict=True), 1):
        print(f"{trial.name} ({i} of {len(planned)}): ", end="", flush=True)
        if is_done:
            print("done before", flush=True)
            continue
        outcome = trials.train(trial)
        print(outcome.message or outcome.state, flush=True)
        if outcome.state == "mistake" and ends_at_mistake:
            raise UserError(f"{trial.name}: {outcome.message}")
        if outcome.state == "stopped":
            raise KeyboardInterrupt
        if outcome.state != "finished":
            failures.append(f"{trial.name}: {outcome.message}")
    return failures


def _average(args: argparse.Namespace) -> None:
    from jaxattn.studies.average import average_checkpoints

    with naming_data_options(args):
        averaged = average_checkpoints(
            args.workdir,
            args.out,
            steps=args.steps,
            last=args.last,
            kind=args.weights,
            data_path=args.data_path,
        )
    rows = {
        f"step {averaged.steps[-1]}": averaged.before,
        f"mean of {len(averaged.steps)}": averaged.after,
    }
    for name, accuracies in rows.items():
        shares = (f"{split} {100 * v:.2f} %" for split, v in accuracies.items())
        print(f"{name:16}{', '.join(shares)}")
    print(f"mean of steps {', '.join(map(str, averaged.steps))} in {args.out}")


def _bn_landscape(args: argparse.Namespace) -> None:
    from jaxattn.config.file import load_config
    from jaxattn.studies.bn_landscape import run_study

    run_study(load_config(args.config, args.overrides), args.workdir)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    runs = parser.add_mutually_exclusive_group(required=True)
    runs.add_argument(
        "--workdirs", type=path, nargs="+", help="folders of finished runs"
    )
    runs.add_argument(
        "--configs",
        nargs="+",
        metavar="CONFIG",
        help="recipes, as canet:tiny or configs/canet.py:tiny, to train first what is"
        " not finished; --config.key=value overrides a value of all of them",
    )
    add("--seeds", type=seed, nargs="+", help="of each recipe (default its own)")
    add("--root", type=path, help="folder of the workdirs: recipe/seed")
    add(
        "--out",
        type=path,
        help="folder of the table, as Markdown and CSV, and the figure (default the"
        " root, or without one comparison, comparison_2 and so on)",
    )
    parser.set_defaults(overrides=[])


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--config",
        required=True,
        help="a recipe, as canet:tiny or configs/canet.py:tiny; --config.key=value"
        " overrides a value of every run",
    )
    add(
        "--workdir",
        type=path,
        required=True,
        help="folder of the runs' folders, and of the table",
    )
    add(
        "--grid",
        type=_key_and_values,
        action="append",
        required=True,
        metavar="KEY=VALUE,VALUE",
        help="a key of the config, such as schedule.learning_rate=0.1,0.01; of several"
        " every combination is trained",
    )
    add("--seeds", type=seed, nargs="+", help="of each (default the recipe's)")
    parser.set_defaults(overrides=[])


def _key_and_values(text: str) -> tuple[str, list[str]]:
    key, _, values = text.partition("=")
    if not re.fullmatch(r"[\w.]+", key) or not values:
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE,VALUE")
    return key, _COMMA.split(values)


def _add_average(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workdir", type=location, required=True, help="folder of the run")
    add("--out", type=location, required=True, help="folder to make")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--last", type=count, help="newest checkpoints (default all)")
    which.add_argument("--steps", type=int, nargs="+", help="of the checkpoints")
    add(
        "--weights",
        default="raw",
        choices=("raw", "ema"),
        help="of each, or their moving average (default %(default)s)",
    )
    add("--data-path", type=location, help="where the data are; default as in the run")


def _add_bn_landscape(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--config",
        required=True,
        help="vgg_bn, or a file like it; --config.key=value overrides a value of it",
    )
    add("--workdir", type=location, required=True, help="folder of the study's outputs")
    parser.set_defaults(overrides=[])


COMMANDS = (
    Command(
        "compare", "Tables and plots runs, by config and seed.", _compare, _add_compare
    ),
    Command("sweep", "Trains every combination of some values.", _sweep, _add_sweep),
    Command("average", "Averages a run's checkpoints.", _average, _add_average),
    Command(
        "bn-landscape",
        "Trains VGG-A with and without batch normalisation, and measures both.",
        _bn_landscape,
        _add_bn_landscape,
    ),
)
