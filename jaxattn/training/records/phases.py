"""What a run does while no step is reported: reading, compiling, testing."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

Show = Callable[[str], None]

COMPILING = "compiling the training step: seconds to minutes, less if done before"
"""What goes on before the first step."""

# What is over sooner is not worth a line.
_BEFORE_FIRST_LINE_S = 1.0
# Between the lines of one phase: twice as long every time, so that a log stays short.
_BETWEEN_LINES_S = (10.0, 60.0)
_BETWEEN_REDRAWS_S = 0.5
_ERASE = "\r\x1b[K"


class Phases:
    """A line about what goes on: in place on a terminal, now and then elsewhere.

    A phase draws from a thread of its own, so that one call that takes minutes, such as
    a compilation, is seen to go on.

    Args:
        stream: Where to write; standard error if None.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.is_terminal = self.stream.isatty()
        self._lock = threading.Lock()

    def message(self, text: str) -> None:
        """Leaves a permanent line."""
        with self._lock:
            erase = _ERASE if self.is_terminal else ""
            print(f"{erase}{text}", file=self.stream, flush=True)

    @contextlib.contextmanager
    def phase(self, text: str, after_s: float = _BEFORE_FIRST_LINE_S) -> Iterator[Show]:
        """Tells what goes on, and for how long, until the block ends.

        Args:
            text: What goes on.
            after_s: Seconds before the first line; a terminal shows it sooner.

        Yields:
            A function that changes the text.
        """
        texts = [text]
        ended = threading.Event()
        draw = self._redraw if self.is_terminal else self._write_lines
        thread = threading.Thread(
            target=draw, args=(texts, ended, after_s), daemon=True
        )
        thread.start()
        try:
            yield lambda text: texts.__setitem__(0, text)
        finally:
            ended.set()
            thread.join()
            if self.is_terminal:
                self._write(_ERASE)

    def _redraw(self, texts: list[str], ended: threading.Event, after_s: float) -> None:
        del after_s
        start = time.monotonic()
        while not ended.wait(_BETWEEN_REDRAWS_S):
            passed = format_time(time.monotonic() - start)
            # A line that is broken could not be erased.
            line = f"{texts[0]}  {passed}"[: self._columns()]
            self._write(_ERASE + line)

    def _write_lines(
        self, texts: list[str], ended: threading.Event, after_s: float
    ) -> None:
        start = time.monotonic()
        wait_s, (next_s, most_s) = after_s, _BETWEEN_LINES_S
        while not ended.wait(wait_s):
            passed = time.monotonic() - start
            # Whoever reads the first line has not waited yet.
            suffix = f"  {format_time(passed)}" if passed >= _BETWEEN_LINES_S[0] else ""
            self._write(f"{texts[0]}{suffix}\n")
            wait_s, next_s = next_s, min(2 * next_s, most_s)

    def _write(self, text: str) -> None:
        with self._lock:
            self.stream.write(text)
            self.stream.flush()

    def _columns(self) -> int:
        """Characters of a line that fit the terminal; some do not know their width."""
        columns = 0
        with contextlib.suppress(OSError, ValueError):
            columns = os.get_terminal_size(self.stream.fileno()).columns
        return (columns or 80) - 1


def format_time(seconds: float) -> str:
    """Returns seconds as `m:ss` or `h:mm:ss`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minute:02}:{second:02}"
    return f"{minute}:{second:02}"
