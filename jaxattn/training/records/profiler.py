"""A trace of some train steps, for TensorBoard's profile plugin and Perfetto."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax


class Profiler:
    """Traces the steps of one process from a first one to a last one.

    Args:
        steps: Numbers of the first and the last step, counted from 1; empty traces
            nothing. A process that starts later traces the rest of them, if any.
        folder: Of TensorBoard's events, beside which its plugin looks for traces.
        say: Shows a line.
    """

    def __init__(
        self, steps: tuple[int, ...], folder: pathlib.Path, say: Callable[[str], None]
    ) -> None:
        self._first, self._last = steps or (0, 0)
        self._folder = folder
        self._say = say
        self._is_tracing = False

    def before(self, step: int, state: Any) -> None:
        """Starts the trace if the next step, the one after `step`, is to be traced."""
        if not self._is_tracing and self._first <= step + 1 <= self._last:
            jax.block_until_ready(state)  # the steps before are none of it
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True

    def after(self, step: int, state: Any) -> None:
        """Ends the trace if `step` is the last one."""
        if self._is_tracing and step >= self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends a trace that is going on, and says where it is."""
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
            self._say(f"trace of steps {self._first} to {self._last} in {self._folder}")
