"""Kills a run again and again, and compares its end with that of an undisturbed one.

python benchmarks/soak.py --epochs 100 --minutes 8

Each start is killed (SIGKILL) 5 to 30 seconds after its first step, until the run ends
or the time is over, when it may end. The train state must then be that of a run in one
piece, bit for bit, and `metrics.jsonl` must hold no step twice. Prints a line for each
start; exits with 1 if one of these claims fails.

How the resident memory of the run in one piece grows is a figure, no claim: a save of
Orbax's leaves some of it behind (that training alone does not is a test of its own).
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import smoke  # noqa: E402 # pyright: ignore[reportMissingImports]

from jaxattn.training.checkpoints.checkpoint import Checkpoints  # noqa: E402
from jaxattn.training.records.writer import read_metrics  # noqa: E402
from jaxattn.training.run import build  # noqa: E402


class Start:
    """One start of the training program, and how much memory it uses."""

    def __init__(self, workdir: pathlib.Path, epochs: int) -> None:
        self._workdir = workdir
        self._first = self._last_step()
        command = [sys.executable, "main.py", "--config", "tests/smoke.py"]
        command += ["--workdir", str(workdir), f"--config.num_epochs={epochs}"]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.memory_mb: list[float] = []

    def run(self, seconds: float | None) -> int | None:
        """Runs to the end, or kills it some time after its first new step.

        Returns:
            Steps when it was killed; None if it ended.
        """
        deadline = None
        while self._process.poll() is None:
            time.sleep(0.1)
            if deadline is None and self._last_step() > self._first:
                deadline = time.monotonic() + (1e9 if seconds is None else seconds)
            if deadline is not None:
                self._measure()
                if time.monotonic() > deadline:
                    self._process.kill()
                    self._process.communicate()
                    return self._last_step()
        _, said = self._process.communicate()
        if self._process.returncode:
            raise SystemExit(f"exit code {self._process.returncode}: {said}")
        return None

    def _last_step(self) -> int:
        rows = read_metrics(self._workdir) if self._workdir.exists() else []
        return rows[-1]["step"] if rows else 0

    def _measure(self) -> None:
        try:
            statm = pathlib.Path(f"/proc/{self._process.pid}/statm").read_text()
            pages = int(statm.split()[1])
        except (OSError, IndexError):  # it has just ended
            return
        if pages:  # none: it is ending
            self.memory_mb.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


def last_state(workdir: pathlib.Path, epochs: int) -> tuple[Any, int]:
    """Returns the newest train state of a workdir, and its step."""
    config = smoke.get_config()
    config.num_epochs = epochs
    checkpoints = Checkpoints(workdir, read_only=True)
    target = build(config, devices=jax.devices()[:1]).abstract_state
    found = checkpoints.restore_latest(target)
    assert found is not None
    return jax.device_get(found[0]), found[1]


def main() -> int:
    """Runs the soak; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=334, help="of 6 steps each")
    parser.add_argument("--minutes", type=float, default=60, help="of being killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        disturbed, whole = pathlib.Path(folder, "a"), pathlib.Path(folder, "b")
        deadline = time.monotonic() + args.minutes * 60
        kills = 0
        while True:
            start = Start(disturbed, args.epochs)
            is_time = time.monotonic() < deadline
            step = start.run(rng.uniform(5, 30) if is_time else None)
            ended = "ended" if step is None else f"killed at step {step}"
            print(f"{ended}, {start.memory_mb[-1]:.0f} MB", flush=True)
            if step is None:
                break
            kills += 1
        reference = Start(whole, args.epochs)
        reference.run(None)
        state, step = last_state(disturbed, args.epochs)
        expected, expected_step = last_state(whole, args.epochs)
        leaves = zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True)
        rows = [r["step"] for r in read_metrics(disturbed) if "step/loss" in r]
        claims = {
            "same final state": step == expected_step
            and all(a.tobytes() == b.tobytes() for a, b in leaves),
            "no step logged twice": rows == sorted(set(rows)),
        }
        n = len(reference.memory_mb)
        tenths = [round(reference.memory_mb[n * i // 10]) for i in range(10)]
        print(f"memory of the run in one piece, by tenths, MB: {tenths}")
        print(json.dumps({"steps": step, "kills": kills, **claims}))
    return int(not all(claims.values()))


if __name__ == "__main__":
    sys.exit(main())
