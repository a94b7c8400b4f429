"""Training metrics on their way from the device to the log."""

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

# Between fetches metrics stay on the device, so that the host never holds it up.
_SECONDS_BETWEEN_FETCHES = 1.0


class Meter:
    """Collects the metrics of train steps, and averages them for the log.

    A row is the mean over `every_steps` steps; the last row of an epoch, or before an
    interruption, may be of fewer. So the rows of an epoch always make up its mean.
    """

    def __init__(self, every_steps: int, start_step: int) -> None:
        self._every_steps = every_steps
        self._step = start_step  # of the last row
        self._pending: list[dict[str, jax.Array]] = []  # on the device
        self._window: list[dict[str, float]] = []  # fetched, not yet in a row
        self._epoch: list[tuple[int, Mapping[str, float]]] = []  # (steps, means)
        self._fetched_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time for a fetch."""
        return time.monotonic() - self._fetched_at >= _SECONDS_BETWEEN_FETCHES

    def recall(self, rows: Iterable[Mapping[str, Any]], start: int) -> None:
        """Takes in the rows that an earlier attempt logged after the step `start`."""
        for row in rows:
            if start < row["step"] <= self._step and "step/loss" in row:
                means = {k.removeprefix("step/"): v for k, v in row.items()}
                # JSON has no NaN: the log holds None for it.
                means = {k: math.nan if v is None else v for k, v in means.items()}
                self._epoch.append((int(row["step"]) - start, means))
                start = int(row["step"])

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of one dispatch, arrays `[K]` on the device.

        Waits for the dispatch before it, so that one runs and one is ready, and no
        more: batches would pile up on the device, and a signal would have to wait.
        """
        if self._pending:
            jax.block_until_ready(self._pending[-1])
        self._pending.append(metrics)

    def fetch(self, *, everything: bool) -> list[dict[str, float]]:
        """Returns the rows that became complete.

        Args:
            everything: Waits for the last dispatch, and closes the last row. Otherwise
                the last dispatch is left running.
        """
        ready = self._pending if everything else self._pending[:-1]
        self._pending = self._pending[len(ready) :]
        rows = []
        for metrics in jax.device_get(ready):
            for i in range(len(metrics["loss"])):
                values = {key: float(value[i]) for key, value in metrics.items()}
                if self._window and not _is_finite(values):
                    # It gets a row of its own: its values tell what happened.
                    rows.append(self._close_row())
                self._window.append(values)
                step = self._step + len(self._window)
                if step % self._every_steps == 0 or not _is_finite(values):
                    rows.append(self._close_row())
        if everything and self._window:
            rows.append(self._close_row())
        if ready:  # the first figures are shown as soon as they are there
            self._fetched_at = time.monotonic()
        return rows

    def take_epoch(self) -> dict[str, float]:
        """Returns the epoch's means: `train_loss` and so on, and `learning_rate`.

        Steps that are not finite are left out: they were skipped. Empty without any
        other, or if the log that `recall` read was lost.
        """
        rows = [(count, row) for count, row in self._epoch if _is_finite(row)]
        self._epoch.clear()
        if not rows:
            return {}
        counts = [count for count, _ in rows]
        return {
            name: float(np.average([row[key] for _, row in rows], weights=counts))
            for key in rows[0][1]
            if (name := _epoch_name(key)) is not None
        }

    def _close_row(self) -> dict[str, float]:
        window, self._window = self._window, []
        self._step += len(window)
        row = {key: float(np.mean([m[key] for m in window])) for key in window[0]}
        self._epoch.append((len(window), row))
        return {"step": self._step, **row}


def _epoch_name(key: str) -> str | None:
    """What an epoch's mean of a step's metric is called; None if it has none."""
    if key in ("step", "gradient_norm"):
        return None
    return key if key == "learning_rate" else f"train_{key}"


def _is_finite(values: Mapping[str, float]) -> bool:
    return math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])
