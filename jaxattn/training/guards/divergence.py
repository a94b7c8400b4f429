"""Steps whose loss or gradient is not finite: skipped and counted, or a run's end."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxattn.errors import DivergedError


class Divergence:
    """Counts the steps of a run that were not finite, and ends it after too many.

    Args:
        most: How many of them are skipped.
        advice: What the user may try.
        logged: Rows of the run's `metrics.jsonl`; each such step has a row of its own.
        step: The step that the run goes on from.
        say: Shows a line.
    """

    def __init__(
        self,
        most: int,
        advice: str,
        logged: Iterable[Mapping[str, Any]],
        step: int,
        say: Callable[[str], None],
    ) -> None:
        self._most, self._advice, self._say = most, advice, say
        keys = ("step/loss", "step/gradient_norm")
        rows = [row for row in logged if row["step"] <= step and keys[0] in row]
        self._count = sum(any(row.get(key) is None for key in keys) for row in rows)

    def check(self, row: Mapping[str, float]) -> None:
        """Takes in the metrics of logged steps.

        Raises:
            DivergedError: If they are not finite, and no more may be skipped.
        """
        if math.isfinite(row["loss"] + row["gradient_norm"]):
            return
        self._count += 1
        what = (
            f"at step {row['step']:.0f} the loss is {row['loss']:.4g} and the gradient"
            f" norm {row['gradient_norm']:.4g} (learning rate"
            f" {row['learning_rate']:.3g})"
        )
        if self._count > self._most:
            raise DivergedError(
                f"{what}; the checkpoint before is kept; {self._advice}"
                + f"; max_skipped_steps={self._most} are used up" * (self._most > 0)
            )
        self._say(f"{what}: skipped, {self._count} of at most {self._most}")
