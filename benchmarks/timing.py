"""Sides of a comparison, each in a process of its own, timed in turn.

A block is a few seconds of one side, once it is warm. Blocks go A B A B, so that
whatever else the machine does falls on all sides alike; each side's figure is the
median of its blocks.
Nothing is shared: one side's threads, allocator and compiled code are not the other's.
"""

import argparse
import contextlib
import math
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from jaxattn import host
from jaxattn.ops import cpu_kernels

Timings = dict[str, dict[str, Any]]


def peak_rss() -> int:
    """Returns the largest memory in bytes that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Side(NamedTuple):
    """Work that is timed.

    Attributes:
        call: Does it once, and returns when it is done.
        items: What one call counts for, such as images.
        peak_bytes: Returns the largest memory it has needed.
    """

    call: Callable[[], Any]
    items: int
    peak_bytes: Callable[[], int] = peak_rss


def time_in_turn(
    sides: Mapping[str, Callable[[], Side]], *, blocks: int = 5, seconds: float = 2.0
) -> Timings:
    """Times sides in turn.

    Args:
        sides: By name, what makes each; pickled, and called in the side's process.
        blocks: Of every side.
        seconds: Of a block, at least one call; before it as many that do not count.

    Returns:
        By name `items_per_s` (one figure a block), `first_call_s` (of making it and the
        first call: compilation) and `peak_bytes`; or `error`.
    """
    # For every side what `jaxattn.host` does for our programs.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    # Several processes share a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        workers = {name: _Worker(context, make, stack) for name, make in sides.items()}
        running = {n: w for n, w in workers.items() if w.error is None}
        figures: dict[str, list[float]] = {name: [] for name in running}
        for _ in range(blocks):
            for name, worker in running.items():
                figures[name].append(worker.ask(seconds))
        timings: Timings = {}
        for name, worker in workers.items():
            if worker.error is not None:
                timings[name] = {"error": worker.error}
                continue
            timings[name] = {
                "items_per_s": figures[name],
                "first_call_s": worker.first_call_s,
                "peak_bytes": int(worker.ask(None)),
            }
    return timings


class _Worker:
    """A side's process, from this one."""

    def __init__(
        self, context: Any, make: Callable[[], Side], stack: contextlib.ExitStack
    ) -> None:
        self._connection, theirs = context.Pipe()
        # Not a daemon: it may have children, such as the workers of a DataLoader.
        process = context.Process(target=_serve, args=(theirs, make), daemon=False)
        process.start()
        theirs.close()
        stack.callback(process.join)
        stack.callback(self._connection.close)
        self.error: str | None = None
        self.first_call_s = math.nan
        try:
            answer = self._connection.recv()
        except EOFError:
            process.join()
            answer = f"its process ended with exit code {process.exitcode}"
        if isinstance(answer, str):
            self.error = answer
        else:
            self.first_call_s = answer

    def ask(self, seconds: float | None) -> float:
        """Returns items per second of a block; or for None the peak in bytes."""
        self._connection.send(seconds)
        return self._connection.recv()


def _serve(connection: Connection, make: Callable[[], Side]) -> None:
    """Makes a side and answers, until asked for its memory."""
    try:
        start = time.perf_counter()
        side = make()
        side.call()
        first_call_s = time.perf_counter() - start
        _spread_xla_threads()
        side.call()  # what the first call left to be done, such as autotuning
        call_s = _seconds(side, 1)
    except Exception as error:  # a peer may lack a compiler, or memory
        connection.send(f"{type(error).__name__}: {str(error).splitlines()[:1]}")
        return
    connection.send(first_call_s)
    with contextlib.suppress(EOFError):
        while (seconds := connection.recv()) is not None:
            # As long before, not counted: the system may have taken memory back while
            # the others had their turn.
            calls = max(1, round(seconds / call_s))
            _seconds(side, calls)
            connection.send(side.items * calls / _seconds(side, calls))
        connection.send(side.peak_bytes())


def _spread_xla_threads() -> None:
    """Gives the threads of XLA's pool a core each.

    Some kernels of virtual machines pack threads that sleep now and then, as XLA's do,
    onto one core and leave the others idle. PyTorch's wait busily, and are not packed.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    tasks = [
        int(task.name)
        for task in pathlib.Path("/proc/self/task").glob("*")
        if (task / "comm").read_text().strip() == "tf_XLAEigen"
    ]
    cores = sorted(os.sched_getaffinity(0))
    for i, task in enumerate(sorted(tasks)):
        os.sched_setaffinity(task, {cores[i % len(cores)]})


def _seconds(side: Side, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        side.call()
    return time.perf_counter() - start


# Arguments, and what is made of timings --------------------------------------------


def add_arguments(parser: argparse.ArgumentParser, seconds: float | None) -> None:
    """Adds what all benchmarks understand.

    Args:
        parser: Of a benchmark.
        seconds: Of a block by default; None where a block is a call.
    """
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--blocks", type=int, default=5, help="of every side")
    if seconds is not None:
        parser.add_argument("--seconds", type=float, default=seconds, help="of a block")
    parser.add_argument("--out", type=pathlib.Path, help="JSON")


def median(timing: Mapping[str, Any]) -> float:
    """Returns the median of a side's blocks, NaN if it failed."""
    return statistics.median(timing.get("items_per_s", [math.nan]))


def spread(timing: Mapping[str, Any]) -> str:
    """Returns the slowest and the fastest block as text."""
    if "error" in timing:
        return timing["error"]
    figures = timing["items_per_s"]
    return f"{min(figures):,.3g} to {max(figures):,.3g}"


def fastest(timings: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Returns the name of the side with the largest median; None if all failed."""
    medians = {n: median(t) for n, t in timings.items() if "error" not in t}
    return max(medians, key=lambda name: medians[name], default=None)


def fastest_sides(timings: Timings) -> tuple[str | None, str | None]:
    """Returns the names of our fastest side, and of the others' fastest.

    Args:
        timings: By name; those of our sides begin with "jaxattn".
    """
    own = {name: t for name, t in timings.items() if name.startswith("jaxattn")}
    return fastest(own), fastest({n: t for n, t in timings.items() if n not in own})


def environment(device: str) -> dict[str, Any]:
    """Returns what a figure was measured with: hardware and versions.

    Args:
        device: "cpu" or "gpu".
    """
    versions = {"python": platform.python_version()}
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
    for package in (*packages, "onnxruntime", "openvino"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    cpu_kernels.prepare()  # before anything is timed
    return {
        "device": device,
        "hardware": host.hardware(device),
        "convolutions": cpu_kernels.name_of_convolutions(),
        "versions": versions,
    }
