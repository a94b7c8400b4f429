"""Ending a run that stands still."""

import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType

_TICK_S = 1.0


class Watchdog:
    """Ends the process when nothing was heard from it for too long.

    A read from a dead file server, a hung device, or a process of the run that never
    answers: the main thread waits in C for each of them, where no exception reaches it.
    Used as a context manager.

    Args:
        timeout_s: Seconds without `feed` after which the process ends.
        describe: Returns what is said then, after why.
    """

    def __init__(self, timeout_s: float, describe: Callable[[], str]) -> None:
        self._timeout_s = timeout_s
        self._describe = describe
        self._tick_s = min(_TICK_S, timeout_s / 4)
        # Ticks and not the clock: a suspended process must not end as it wakes.
        self._ticks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def feed(self) -> None:
        """Says that the run goes on."""
        self._ticks = 0

    def __enter__(self) -> "Watchdog":
        """Starts to watch."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops watching."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._tick_s):
            self._ticks += 1
            if self._ticks * self._tick_s >= self._timeout_s:
                sys.stderr.write(
                    f"no step in {self._timeout_s:g} s: the data, a device or another"
                    f" process does not answer; {self._describe()}\n"
                )
                sys.stderr.flush()
                # Not sys.exit: it would end this thread alone.
                os._exit(1)
