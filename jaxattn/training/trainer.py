"""A run, step by step: for the training loop, studies, benchmarks and notebooks.

`examples/train_step.py` is a loop in ten lines.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jaxattn.data.pipeline import Batch, Feed
from jaxattn.training.devices.mesh import Dispatch
from jaxattn.training.evaluate import Evaluator
from jaxattn.training.run import Run
from jaxattn.training.state import TrainState
from jaxattn.training.steps import Metrics, TrainStep


class Update(NamedTuple):
    """What a dispatch of train steps came to.

    Attributes:
        step: Training steps done.
        state: After them. The state before is gone: its memory is used again.
        metrics: Of each of its K steps, arrays `[K]` on the device.
    """

    step: int
    state: TrainState
    metrics: Metrics


class Trainer:
    """Trains and evaluates a run on its devices; writes nothing.

    Args:
        run: The run.
        is_stopped: Asked before every batch of an evaluation, which then ends.

    Attributes:
        run: The same.
        evaluator: Of the run's splits.
    """

    def __init__(
        self, run: Run, is_stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self.run = run
        self.evaluator = Evaluator(run, is_stopped)
        self._loader = run.loaders["train"]
        self._dispatch = functools.cache(lambda at: self.compile(run.step_of(at)))

    def init_state(self) -> TrainState:
        """Returns the state at step 0, where the steps want it.

        Raises:
            UserError: If the weights to start from cannot be had or do not fit.
        """
        return self.run.init_state()

    def train(
        self, state: TrainState | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[Update]:
        """Yields the state and the metrics of one dispatch after another.

        A dispatch is up to `run.steps_per_dispatch` steps, within an epoch. Its steps
        run while the caller's code does; reading an array waits for them.

        Args:
            state: To start from; by default the one at step 0.
            start: Training steps that are done in it.
            stop: The last step; by default the run's.
        """
        run = self.run
        state = self.init_state() if state is None else state
        stop = run.total_steps if stop is None else stop
        step = start
        with contextlib.closing(self.feeds(start, stop)) as feeds:
            for chunk in _chunks(feeds, start, run):
                # What TensorBoard's profile plugin takes for a step.
                with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
                    dispatch = self._dispatch(run.phase_at(step))
                    state, metrics = dispatch(state, self.place(chunk))
                step += len(chunk)
                yield Update(step, state, metrics)

    def evaluate(self, state: TrainState, split: str) -> dict[str, Any] | None:
        """Returns the task's summary of the raw weights on a split.

        Args:
            state: Of the weights.
            split: "train", "val" or "test".
        """
        return self.evaluator.evaluate(state.variables, split)

    # For steps of another kind --------------------------------------------------------

    def compile(
        self, step: TrainStep
    ) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """Returns `(state, placed feeds [K]) -> (state, metrics [K])` of a step.

        Args:
            step: Such as `run.train_step`; the state it is given is donated.
        """
        dispatch: Dispatch = self.run.parallel.compile_train(step, self._loader.fetch)
        store = self.evaluator.stores["train"]
        return lambda state, placed: dispatch(state, store, placed)

    def feeds(self, start: int, stop: int) -> Any:
        """Yields this process's feeds of the steps in `[start, stop)`; close it."""
        return self._loader.train_feeds(self.run.order, start, stop)

    def place(self, feeds: Sequence[Feed]) -> Batch:
        """Puts the feeds of several steps on the devices, for a compiled step."""
        return self.run.parallel.place_stacked(feeds)


def _chunks(feeds: Iterator[Feed], step: int, run: Run) -> Iterator[list[Feed]]:
    """Groups feeds into dispatches within an epoch, and within or outside a trace.

    As many steps before a trace are grouped as those in it, so that what such a
    dispatch compiles is not traced, if an epoch has room for both.
    """
    first, last = run.log.profile_steps or (0, 0)
    warm_up = 2 * first - last - 2
    while True:
        end = (step // run.steps_per_epoch + 1) * run.steps_per_epoch
        stop = min(n for n in (end, warm_up, first - 1, last) if n > step)
        chunk = list(itertools.islice(feeds, min(run.steps_per_dispatch, stop - step)))
        if not chunk:
            return
        yield chunk
        step += len(chunk)
