"""Steps whose loss or gradient is not finite: skipped and counted, or a run's end."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import optax

from jaxattn.errors import DivergedError

# One program: computed leaf by leaf, every shape would be compiled on its own.
_norm = jax.jit(optax.tree.norm)


class Divergence:
    """Counts the steps of a run that were not finite, and ends it after too many.

    Args:
        most: How many of them are skipped.
        optimizer: The config's section: the advice names keys that it has.
        logged: Rows of the run's `metrics.jsonl`; each such step has a row of its own.
        step: The step that the run goes on from.
        say: Shows a line.
    """

    def __init__(
        self,
        most: int,
        optimizer: Mapping[str, Any],
        logged: Iterable[Mapping[str, Any]],
        step: int,
        say: Callable[[str], None],
    ) -> None:
        self._most, self._advice, self._say = most, _advise(optimizer), say
        keys = ("step/loss", "step/gradient_norm")
        rows = [row for row in logged if row["step"] <= step and keys[0] in row]
        self._count = sum(any(row.get(key) is None for key in keys) for row in rows)

    def check_weights(self, params: Any, step: int) -> None:
        """Checks what a checkpoint would keep.

        Args:
            params: The network's parameters.
            step: After which they are so.

        Raises:
            DivergedError: If one is not finite.
        """
        if not math.isfinite(_norm(params)):
            raise DivergedError(
                f"the weights are not finite at step {step}; the checkpoint before is"
                f" kept; {self._advice}"
            )

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


def _advise(optimizer: Mapping[str, Any]) -> str:
    advice = "try a lower schedule.learning_rate"
    if "clip_norm" not in optimizer:
        return advice
    norm = optimizer["clip_norm"]
    below = "" if norm is None else f" below {norm:g}"
    return f"{advice}, or optimizer.clip_norm{below}"
