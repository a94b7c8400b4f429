"""What to do with a GPU for some minutes: speed, accuracy and scaling, in this order.

    python benchmarks/gpu_suite.py --minutes 25 --data DIR --out suite
    python benchmarks/gpu_suite.py --minutes 20 --data DIR --out suite --smoke

Every item runs in a process of its own within its limit, and its result is in
`OUT/items` as soon as it is done; `OUT/summary.md` shows them all. Repeat the command
to go on: what is done is skipped, a training run (in `OUT/runs`) that its limit has
stopped continues, and what failed is tried again after the rest. The command ends by
itself within its minutes, to 20 seconds. `--smoke` runs a part of it on a CPU, on tiny
work, in `OUT/smoke`: what it finds wrong costs no time on a GPU.

Needs no TensorFlow; without PyTorch our sides are timed alone.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import blocks, compare_torch, epoch, reproduce, scaling, tables, timing
from benchmarks.steps import Work
from jaxattn import host
from jaxattn.atomic import write_atomically
from jaxattn.data import load_data
from jaxattn.errors import InterruptedRun, UserError, choose

# Every item, most valuable first, and the minutes that one call gives it at most.
MINUTES = {
    "limits": 2.0,
    # compare_torch.py
    "speed.canet_tiny": 4.0,
    "speed.canet": 5.0,
    "speed.enhanced_efficient_resnet": 4.0,
    "speed.resnet18": 4.0,
    "speed.sccnet18": 5.0,
    "speed.sccnet34": 6.0,
    "speed.resnet50_scsa": 6.0,
    "speed.resnet50": 5.0,
    # blocks.py
    "blocks.SCC 3x3": 2.5,
    "blocks.SCC 5x5": 2.5,
    "blocks.SCSA": 2.5,
    "blocks.CBAM": 2.5,
    "blocks.MultiKernelECA": 2.5,
    "blocks.SpatialGate": 2.5,
    "blocks.CompetitiveAttention": 2.5,
    "blocks.AttResBlock": 2.5,
    "blocks.AttentionResidualBlock": 2.5,
    "blocks.scsa_in_resnet50": 4.0,
    # epoch.py
    "epoch.canet_tiny": 6.0,
    "epoch.canet": 8.0,
    "epoch.resnet18": 6.0,
    # Accuracy on CIFAR-10
    "train.canet_tiny": 15.0,
    "train.canet": 15.0,
    "train.resnet18": 15.0,
    "train.best_gpu": 10.0,
    "train.canet_light": 15.0,
    "train.enhanced_efficient_resnet": 25.0,
    "train.vgg_a": 10.0,
    "train.vgg_a_bn": 10.0,
    "train.canet_pro": 25.0,
    "train.sccnet18": 25.0,
    "train.resnet18_scsa": 20.0,
    "train.resnet34": 20.0,
    "train.mobilenet_v2": 20.0,
    "train.shufflenet_v2_x0_5": 15.0,
    "train.vgg11": 15.0,
    # scaling.py; one GPU has no series of devices
    "scaling.batch_size": 5.0,
    "scaling.image_size": 5.0,
    "scaling.width": 5.0,
}
# One of each kind, but every recipe.
_SMOKE = {
    "limits",
    "speed.canet_tiny",
    "blocks.SCSA",
    "epoch.canet_tiny",
    "scaling.batch_size",
}

_GRACE_S = 12.0  # for a training run to save, once it was asked to stop
# An item begins if so much of its limit is left: all of it is rarely needed, but what
# is no training run leaves nothing behind unless it ends.
_LEAST_SHARE, _LEAST_SHARE_OF_TRAINING = 0.5, 0.05


def main() -> None:
    """Runs one item, or all that are left."""
    args = _parse()
    out = args.out / "smoke" if args.smoke else args.out
    context = Context(args.data, out, args.smoke)
    try:
        if args.run_item:
            run_item(args.run_item, context)
        else:
            _run_suite(args, context)
    except UserError as error:
        _exit(error, 2)
    except InterruptedRun as stop:
        _exit(stop, stop.exit_code)


def _exit(error: Exception, code: int) -> None:
    print(f"gpu_suite.py: {error}", file=sys.stderr)
    sys.exit(code)


@dataclasses.dataclass(frozen=True)
class Context:
    """What all items have in common.

    Attributes:
        data: CIFAR-10, as `data.path`.
        out: Folder of the results.
        smoke: Tiny work on a CPU.
    """

    data: str
    out: pathlib.Path
    smoke: bool

    @property
    def device(self) -> str:
        """To run on, "cpu" or "gpu"."""
        return "cpu" if self.smoke else "gpu"

    @property
    def blocks(self) -> int:
        """Of every side that is timed."""
        return 2 if self.smoke else 5

    def seconds(self, on_gpu: float) -> float:
        """Returns the length of a block; given is that on a GPU."""
        return 0.1 if self.smoke else on_gpu


# The suite -------------------------------------------------------------------------


class Item(NamedTuple):
    """A part of the suite.

    Attributes:
        name: Its kind and what it is of, as "speed.canet".
        minutes: That one call gives it at most.
    """

    name: str
    minutes: float

    @property
    def resumes(self) -> bool:
        """Whether it goes on where it was stopped, by SIGTERM: a training run."""
        return self.name.startswith("train.")

    @property
    def least_s(self) -> float:
        """Seconds without which it does not begin."""
        share = _LEAST_SHARE_OF_TRAINING if self.resumes else _LEAST_SHARE
        return 60 * self.minutes * share


def select_items(names: Sequence[str], smoke: bool) -> list[Item]:
    """Returns the items of the given names or kinds; of none all that are to run."""
    items = [Item(name, minutes) for name, minutes in MINUTES.items()]
    for name in names:
        choose("--items", name, dict.fromkeys([*_RUN, *MINUTES]))
    if names:
        return [i for i in items if {i.name, i.name.split(".")[0]} & {*names}]
    return [i for i in items if not smoke or i.resumes or i.name in _SMOKE]


def _run_suite(args: argparse.Namespace, context: Context) -> None:
    deadline_s = time.monotonic() + 60 * args.minutes
    # As an exception, so that the running item is ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    items = select_items(args.items, context.smoke)
    load_data("cifar10", path=context.data)  # before time is spent, for its errors
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if context.smoke:
        environment["JAX_PLATFORMS"] = "cpu"
        context = _with_small_data(context)
    elif not _has_gpu():
        raise UserError("no GPU here: JAX finds none; --smoke runs on a CPU")
    this = str(pathlib.Path(__file__).resolve())

    def command(item: Item) -> list[str]:
        own = ["--run_item", item.name, "--data", context.data, "--out", str(args.out)]
        return [sys.executable, this, *own, *(["--smoke"] if context.smoke else [])]

    run_items(items, command, context.out, deadline_s, environment)
    print(f"{context.out / 'summary.md'}")


def _has_gpu() -> bool:
    """Asks another process: this one must not take the GPU's memory."""
    command = [sys.executable, "-c", "import jax; jax.devices('gpu')"]
    return subprocess.run(command, capture_output=True).returncode == 0


def _with_small_data(context: Context) -> Context:
    context.out.mkdir(parents=True, exist_ok=True)
    path = str(context.out / "data.npz")
    epoch.write_subset(context.data, path, num_train=200, num_test=50)
    return dataclasses.replace(context, data=path)


def run_items(
    items: Iterable[Item],
    command: Callable[[Item], list[str]],
    out: pathlib.Path,
    deadline_s: float,
    environment: dict[str, str] | None = None,
) -> None:
    """Runs the items that are left, one after the other.

    Args:
        items: In their order.
        command: Of an item: what writes its record if it succeeds.
        out: Folder of the results.
        deadline_s: When to end, by `time.monotonic`.
        environment: Of the commands; this process's by default.
    """
    items = list(items)
    for folder in ("items", "logs"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    left = [item for item in items if status(item.name, out) != "done"]
    left.sort(key=lambda item: status(item.name, out) == "failed")
    write_summary(items, out)
    for item in left:
        left_s = deadline_s - time.monotonic()
        if left_s < item.least_s:
            continue
        print(f"{item.name}: at most {min(left_s, 60 * item.minutes):.0f} s", end="")
        sys.stdout.flush()
        _run(item, command(item), out, left_s, environment)
        print(f": {status(item.name, out)}", flush=True)
        write_summary(items, out)


def _run(
    item: Item,
    command: list[str],
    out: pathlib.Path,
    left_s: float,
    environment: dict[str, str] | None,
) -> None:
    """Runs an item's command within its limit, and records what came of it."""
    start_s, limit_s = time.monotonic(), 60 * item.minutes
    log = out / "logs" / f"{item.name}.log"
    with log.open("ab") as file:
        # In a group of its own, for what it starts is to end with it.
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, process_group=0
        )
        code = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(min(limit_s, left_s))
        finally:
            _end(process, gently=item.resumes)
    if status(item.name, out) == "done":
        return
    passed_s = round(time.monotonic() - start_s)
    if code is None and (item.resumes or left_s < limit_s):
        record = {"unfinished": f"stopped after {passed_s} s"}
    elif code is None:
        record = {"error": f"not done in {item.minutes:g} minutes"}
    elif code in (130, 143):
        record = {"unfinished": f"stopped by a signal after {passed_s} s"}
    else:
        record = {"error": f"exit code {code}: {_last_line(log)}"}
    write_record(item.name, out, record)


def _end(process: subprocess.Popen[bytes], *, gently: bool) -> None:
    """Ends a process that still runs, and all that it has started."""
    if gently and process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(log: pathlib.Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")


# Records ---------------------------------------------------------------------------


def write_record(name: str, out: pathlib.Path, record: dict[str, Any]) -> None:
    """Writes what came of an item: its `result`, an `error`, or why `unfinished`."""
    text = json.dumps({"item": name, **record}, indent=1)
    write_atomically(_record_path(name, out), text + "\n")


def read_record(name: str, out: pathlib.Path) -> dict[str, Any]:
    """Returns what came of an item; empty if it has not run."""
    path = _record_path(name, out)
    return json.loads(path.read_text()) if path.exists() else {}


def status(name: str, out: pathlib.Path) -> str:
    """Returns "done", "failed", "unfinished" or "not begun"."""
    record = read_record(name, out)
    states = {"result": "done", "error": "failed", "unfinished": "unfinished"}
    return next((states[key] for key in states if key in record), "not begun")


def _record_path(name: str, out: pathlib.Path) -> pathlib.Path:
    return out / "items" / f"{name.replace(' ', '_')}.json"


# One item --------------------------------------------------------------------------


def run_item(name: str, context: Context) -> None:
    """Runs an item in this process and writes its record if it succeeds.

    Args:
        name: Of the item.
        context: What all items have in common.
    """
    kind, _, what = name.partition(".")
    start_s = time.monotonic()
    result = _RUN[kind](what, context)
    record = {
        "environment": timing.environment(context.device),
        "wall_s": round(time.monotonic() - start_s, 1),
        "result": result,
    }
    write_record(name, context.out, record)


def _run_limits(what: str, context: Context) -> dict[str, float]:
    del what
    return compare_torch.measure_limits(context.device)


def _run_speed(what: str, context: Context) -> dict[str, Any]:
    work = next(work for work in compare_torch.rows("gpu") if work.model == what)
    unknown = {"flops": math.nan, "bytes_per_s": math.nan}
    limits = read_record("limits", context.out).get("result", unknown)
    variants = None
    if context.smoke:  # to compile PyTorch's for a CPU takes longer than all else
        work, variants = _small(work), ("channels_last",)
    return compare_torch.compare(
        work,
        limits,
        blocks=context.blocks,
        seconds=context.seconds(2.0),
        variants=variants,
    )


def _small(work: Work) -> Work:
    """Returns the same network on a CPU, for four images of 32 pixels."""
    return epoch.make_work(work.model, 4, "cpu")


def _run_blocks(what: str, context: Context) -> dict[str, Any]:
    if what == "scsa_in_resnet50":
        return blocks.compare_scsa(context.device, context.blocks)
    return blocks.compare(what, context.device, context.blocks, context.seconds(0.5))


def _run_epoch(what: str, context: Context) -> dict[str, Any]:
    workers = 1 if context.smoke else multiprocessing.cpu_count()
    work = epoch.make_work(what, 32 if context.smoke else 256, context.device)
    variant = "channels_last" if context.smoke else "channels_last+compile"
    return epoch.compare(work, context.data, variant, workers, context.blocks)


def _run_train(what: str, context: Context) -> dict[str, Any]:
    host.prepare()
    from jaxattn.training.loop import train_and_evaluate

    run = make_run(what, context)
    devices = jax.devices(context.device)[:1]
    train_and_evaluate(run.trial.config, run.trial.workdir, devices=devices)
    return reproduce.make_record(run)


def make_run(what: str, context: Context) -> reproduce.Run:
    """Returns a training run: a row of `reproduce.py`.

    Args:
        what: Name of the row.
        context: What all items have in common.
    """
    # Rounded to bfloat16, other branches of an SCC win.
    keeps_dtype = context.smoke or what.startswith("sccnet")
    dtype = "float32" if keeps_dtype else "bfloat16"
    (run,) = reproduce.make_runs(what, context.data, context.out / "runs", dtype)
    if context.smoke:
        run.trial.config.update(num_epochs=1, batch_size=20)
    return run


def _run_scaling(what: str, context: Context) -> list[dict[str, Any]]:
    base, values = scaling.BASE[context.device], scaling.VALUES[context.device][what]
    if context.smoke:
        base, values = (
            dataclasses.replace(base, batch_size=4, image_size=16),
            values[:2],
        )
    seconds = context.seconds(1.0)
    return scaling.measure(what, base, values, blocks=context.blocks, seconds=seconds)


_RUN: dict[str, Callable[[str, Context], Any]] = {
    "limits": _run_limits,
    "speed": _run_speed,
    "blocks": _run_blocks,
    "epoch": _run_epoch,
    "train": _run_train,
    "scaling": _run_scaling,
}


# Summary ---------------------------------------------------------------------------


def write_summary(items: Sequence[Item], out: pathlib.Path) -> None:
    """Writes `summary.md`, and the figure of scaling where matplotlib is.

    Args:
        items: Of the suite.
        out: Folder of the results.
    """
    done: dict[str, dict[str, Any]] = {}
    for item in items:
        kind, _, what = item.name.partition(".")
        record = read_record(item.name, out)
        if "result" in record:
            done.setdefault(kind, {})[what] = record["result"]
    parts = [
        "# Results of benchmarks/gpu_suite.py",
        _format_environment(items, out),
        *_format_speed(done),
        *_format_accuracy([item for item in items if item.resumes], out),
        *_format_scaling(done.get("scaling", {}), out),
        "## Items",
        _format_items(items, out),
    ]
    write_atomically(out / "summary.md", "\n\n".join(parts) + "\n")


def _format_environment(items: Sequence[Item], out: pathlib.Path) -> str:
    """Returns every machine and set of versions that items ran with."""
    records = [read_record(item.name, out) for item in items]
    found = [record["environment"] for record in records if "environment" in record]
    lines = {
        f"{e['hardware']}; {', '.join(f'{k} {v}' for k, v in e['versions'].items())}"
        for e in found
    }
    return "\n\n".join(sorted(lines)) or "Nothing is done yet."


def _format_speed(done: dict[str, dict[str, Any]]) -> list[str]:
    parts = []
    if rows := done.get("speed"):
        table = compare_torch.format_table({"rows": rows.values()})
        parts += ["## Train step, images/s", table]
    rows = dict(done.get("blocks", {}))
    extra = {k: rows.pop(k) for k in ("scsa_in_resnet50",) if k in rows}
    if rows or extra:
        table = blocks.format_table({"rows": rows.values(), **extra})
        parts += ["## Blocks, forward and backward", table]
    if rows := done.get("epoch"):
        parts += ["## Whole epoch", epoch.format_table(list(rows.values()))]
    return parts


def _format_accuracy(items: Sequence[Item], out: pathlib.Path) -> list[str]:
    """Returns the table of the training runs that have begun."""
    begun = [item for item in items if status(item.name, out) != "not begun"]
    if not begun:
        return []
    context = Context("", out, smoke=False)
    names = [item.name.partition(".")[2] for item in begun]
    runs = {name: make_run(name, context) for name in names}
    found = {name: [reproduce.make_record(run)] for name, run in runs.items()}
    table = tables.format_table(names, found)
    return ["## Accuracy on CIFAR-10", table]


def _format_scaling(series: dict[str, Any], out: pathlib.Path) -> list[str]:
    if not series:
        return []
    parts = ["## Scaling", scaling.format_table(series)]
    with contextlib.suppress(ImportError):  # matplotlib
        from jaxattn.viz.figure import save_figure

        save_figure(scaling.plot(series), out / "scaling.png")
        parts.append("![Images/s and GFLOP/s of the series](scaling.png)")
    return parts


def _format_items(items: Sequence[Item], out: pathlib.Path) -> str:
    lines = ["| item | | time |", "|---|---|---|"]
    for item in items:
        record = read_record(item.name, out)
        reason = record.get("error") or record.get("unfinished")
        state = status(item.name, out) + (f": {reason}" if reason else "")
        wall = f"{record['wall_s']:.0f} s" if "wall_s" in record else ""
        lines.append(f"| {item.name} | {state.replace('|', ' ')} | {wall} |")
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=25.0, help="25 by default")
    parser.add_argument("--data", required=True, help="CIFAR-10, as --config.data.path")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder")
    parser.add_argument(
        "--items", nargs="*", default=(), help="names or kinds (speed, train.canet)"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny work on a CPU")
    parser.add_argument("--run_item", help=argparse.SUPPRESS)  # in a child process
    return parser.parse_args()


if __name__ == "__main__":
    main()
