"""How long a start takes: from the process to its first step, or its first prediction.

    python benchmarks/startup.py --out benchmarks/results/startup_cpu.json

The README's commands on the CPU, each in a process of its own, three times in turn:
"first" on a machine that has computed nothing, where the CPU kernels are built; "cold"
with the kernels and without a compiled program; "warm" with both. A training has done
its first step when its figures stand in `metrics.jsonl`, and is ended then. Prints
medians, the fastest and the slowest.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import timing

ROOT = pathlib.Path(__file__).resolve().parent.parent
STATES = ("first", "cold", "warm")
_POLL_S = 0.01
_TRAIN = ("main.py", "--config.log.every_steps=1", "--workdir={workdir}")
# By name; the workdir is not there yet.
COMMANDS: dict[str, Sequence[str]] = {
    "quickstart": (*_TRAIN, "--config=configs/quickstart.py"),
    "canet_tiny": (
        *_TRAIN,
        "--config=configs/canet.py:tiny",
        "--config.data.name=synthetic",
        "--config.data.image_size=32",
    ),
    "predict": (
        *("-m", "jaxattn", "predict", "--weights=canet_tiny-cifar10"),
        *("--data=assets/horses.jpg", "--out={workdir}/classes.csv"),
    ),
}


def main() -> None:
    """Prints the table and writes it as JSON."""
    args = _parse()
    seconds: dict[str, dict[str, list[float]]] = {
        name: {state: [] for state in STATES} for name in args.commands
    }
    for _ in range(args.repetitions):
        for name in args.commands:
            for state, passed in time_starts(COMMANDS[name]).items():
                seconds[name][state].append(round(passed, 2))
    print(f"{'command':12}{'state':8}{'median s':>9}  all")
    for name, states in seconds.items():
        for state, values in states.items():
            spread = f"{min(values):.1f} to {max(values):.1f}"
            print(f"{name:12}{state:8}{statistics.median(values):9.1f}  {spread}")
    if args.out:
        results = {**timing.environment("cpu"), "seconds": seconds}
        args.out.write_text(json.dumps(results, indent=1) + "\n")


def time_starts(command: Sequence[str]) -> dict[str, float]:
    """Returns the seconds of one start in each state.

    Args:
        command: Arguments of Python.

    Raises:
        RuntimeError: If a process fails.
    """
    with tempfile.TemporaryDirectory(prefix="startup-") as name:
        folder = pathlib.Path(name)
        cache = folder / "cache"
        passed = {}
        for state in STATES:
            if state == "cold":
                shutil.rmtree(cache / "jaxattn" / "xla", ignore_errors=True)
            passed[state] = time_start(command, folder / state, cache)
        return passed


def time_start(
    command: Sequence[str], workdir: pathlib.Path, cache: pathlib.Path
) -> float:
    """Returns the seconds until a process is through or has done its first step.

    Args:
        command: Arguments of Python, in which it stands as `{workdir}`.
        workdir: A folder that is not there yet.
        cache: Of what is kept from start to start.

    Raises:
        RuntimeError: If it fails.
    """
    environment: dict[str, Any] = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(cache),
    }
    command = [part.format(workdir=workdir) for part in command]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        while process.poll() is None and not has_stepped(workdir):
            time.sleep(_POLL_S)
        passed = time.perf_counter() - start
        process.kill()
        if process.wait() > 0:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)}: {said.read().decode()}")
    return passed


def has_stepped(workdir: pathlib.Path) -> bool:
    """Whether the figures of a step stand in a workdir."""
    metrics = workdir / "metrics.jsonl"
    return metrics.exists() and "step/loss" in metrics.read_text()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--commands", nargs="+", choices=COMMANDS, default=[*COMMANDS])
    add("--repetitions", type=int, default=5)
    add("--out", type=pathlib.Path, help="JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
