"""How far a run is and how fast it goes, for the person who watches it."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from jaxattn.tasks.task import Figures, Task
from jaxattn.training.records.phases import Phases, Show, format_time

_SECONDS_PER_LINE = 10.0


class Progress:
    """A progress bar on a terminal, plain lines elsewhere.

    Args:
        total_steps: Steps of the whole run.
        start_step: The step from which the run starts or resumes.
        num_epochs: Epochs of the whole run, for display.
        batch_size: Images per step over all devices and processes.
        task: What is learnt; it says figures in words.
        phases: What tells of the time between steps; it has the stream to write to.
        clock: Seconds, never running backwards.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        start_step: int,
        num_epochs: int,
        batch_size: int,
        task: Task,
        phases: Phases,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps = total_steps
        self._num_epochs = num_epochs
        self._batch_size = batch_size
        self._task = task
        self._phases = phases
        self._clock = clock
        # Rates count from the first update, which has seen the compilation pass.
        # (step, seconds of training): seconds on the clock less those paused.
        self._first: tuple[int, float] | None = None
        self._last = (start_step, 0.0)
        self._paused_s = 0.0
        self._first_time = 0.0
        self._line_due = clock() + _SECONDS_PER_LINE
        self._has_evaluated = False
        self._bar: Any = None
        if phases.is_terminal:
            self._bar = _make_bar(phases.stream, total_steps, start_step)

    @property
    def images_per_s(self) -> float | None:
        """Mean training speed since the first update, pauses left out.

        None until two updates of different steps were seen.
        """
        if self._first is None or self._last[0] == self._first[0]:
            return None
        steps = self._last[0] - self._first[0]
        seconds = self._last[1] - self._first[1]
        return self._batch_size * steps / max(seconds, 1e-9)

    def update(self, step: int, *, epoch: int, figures: Figures) -> None:
        """Shows the state of the run; call it when metrics were fetched.

        Args:
            step: Steps completed since the start of the run.
            epoch: The current epoch, the first being 1.
            figures: Of training, those that the task shows among them.
        """
        now = self._clock()
        self._last = (step, now - self._paused_s)
        if self._first is None:
            self._first, self._first_time = self._last, now
        head = f"epoch {epoch}/{self._num_epochs}"
        state = "  ".join(self._task.describe(figures)) + self._pace()
        if self._bar is not None:
            self._bar.set_description_str(head, refresh=False)
            self._bar.set_postfix_str(state, refresh=False)
            self._bar.n = step
            self._bar.refresh()
        elif now >= self._line_due:
            self.message(f"{head}  step {step}/{self._total_steps}  {state}")

    def epoch_line(self, row: Mapping[str, Any]) -> None:
        """Leaves a permanent line about an epoch.

        Args:
            row: `epoch`, `train_loss` and what else the task shows, and where they were
                measured `val_loss` and `val_loss_ema` and so on, and what weights are
                best by.
        """
        parts = [f"epoch {row['epoch']}/{self._num_epochs}"]
        for name, suffix in (("train", ""), ("val", ""), ("val", "_ema")):
            figures = {
                key: row[f"{name}_{key}{suffix}"]
                for key in dict.fromkeys((*self._task.shown, self._task.metric))
                if f"{name}_{key}{suffix}" in row
            }
            if figures and None not in figures.values():
                described = self._task.describe(figures)
                parts.append(" ".join(["ema" if suffix else name, *described]))
        self.message("  ".join(parts) + self._pace())

    def message(self, text: str) -> None:
        """Leaves a permanent line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._phases.stream)
        else:
            self._phases.message(text)
        self._line_due = self._clock() + _SECONDS_PER_LINE

    @contextlib.contextmanager
    def phase(self, text: str, **options: float) -> Iterator[Show]:
        """As `Phases.phase`, in the place of the bar if there is one."""
        if self._bar is not None:
            self._bar.clear()
        try:
            with self._phases.phase(text, **options) as show:
                yield show
        finally:
            if self._bar is not None:
                self._bar.refresh()

    @contextlib.contextmanager
    def evaluation(
        self, doing: str, total: int, **options: float
    ) -> Iterator[Callable[[int], None]]:
        """Tells how far an evaluation is; the first one compiles.

        Args:
            doing: What goes on.
            total: Examples.
            **options: Of `Phases.phase`.

        Yields:
            A function to call with the number of examples that are done.
        """
        compiling = "" if self._has_evaluated else ", compiling"
        self._has_evaluated = True
        with self.phase(f"{doing} 0/{total:,}{compiling}", **options) as show:
            yield lambda n: show(f"{doing} {n:,}/{total:,}" + (not n) * compiling)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside the block (an evaluation) out of `images_per_s`.

        Update right before it: steps in flight would otherwise count as free.
        """
        start = self._clock()
        try:
            yield
        finally:
            self._paused_s += self._clock() - start

    def close(self) -> None:
        """Removes the bar; the permanent lines stay."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _pace(self) -> str:
        speed = self.images_per_s
        if speed is None or self._first is None:
            return ""
        # Time to come includes evaluations, as the time passed does.
        steps = self._last[0] - self._first[0]
        passed = self._clock() - self._first_time
        eta = passed / steps * (self._total_steps - self._last[0])
        return f"  {speed:,.0f} images/s  eta {format_time(eta)}"


def _make_bar(stream: TextIO, total_steps: int, start_step: int) -> Any:
    try:
        import tqdm
    except ModuleNotFoundError:  # plain lines then, as without a terminal
        return None
    # Our own speed and ETA: tqdm's would count compilation and evaluations.
    return tqdm.tqdm(
        total=total_steps,
        initial=start_step,
        file=stream,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        dynamic_ncols=True,
        leave=False,
    )
