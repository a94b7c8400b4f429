"""Stopping a run by signal, at any moment, without losing a step."""

import os
import signal
import socket
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# `timeout` and batch schedulers signal the process and then its group, which is one
# request and not two. Nobody asks twice within this time (seconds).
DUPLICATE_WINDOW_S = 0.1


class Interrupt:
    """Turns SIGTERM and SIGINT into a flag that the training loop reads between steps.

    Used as a context manager in the main thread. The first signal sets the flag and
    says so on stderr, the second ends the process at once with exit code 128 + its
    number. Both act even while XLA compiles: a Python handler would wait for the main
    thread to return from C++, so a thread of its own reads the numbers that the
    interpreter's C handler writes to the wakeup descriptor. In any other thread than
    the main one Python allows no handlers, and the flag is never set.

    Attributes:
        signum: Number of the first signal, None before it.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._first_s = 0.0
        self._handlers: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has asked the run to stop."""
        return self.signum is not None

    @property
    def exit_code(self) -> int:
        """Exit code of a run that stopped so: 130 or 143; 0 without a signal."""
        return 0 if self.signum is None else 128 + self.signum

    def __enter__(self) -> "Interrupt":
        """Installs the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts the earlier handlers back."""
        if self._handlers:
            self._uninstall()

    def _install(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)  # the C handler must never wait
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._wakeup_fd = signal.set_wakeup_fd(
            self._writer.fileno(), warn_on_full_buffer=False
        )
        self._handlers = {
            signum: signal.signal(signum, _do_nothing) for signum in SIGNALS
        }

    def _uninstall(self) -> None:
        for signum, handler in self._handlers.items():
            # None stands for a handler installed by C code, which cannot be put back.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}
        signal.set_wakeup_fd(self._wakeup_fd)
        self._writer.close()  # ends the thread's recv
        self._thread.join()
        self._reader.close()

    def _listen(self) -> None:
        while received := self._reader.recv(64):
            for signum in received:
                # Every signal with a Python handler writes here, not only ours.
                if signum in SIGNALS:
                    self._receive(signum)

    def _receive(self, signum: int) -> None:
        now_s = time.monotonic()
        if self.signum is None:
            self.signum, self._first_s = signum, now_s
            sys.stderr.write(
                f"{signal.Signals(signum).name}: will save after this step and stop; "
                "a second signal stops at once\n"
            )
            sys.stderr.flush()
        elif now_s - self._first_s > DUPLICATE_WINDOW_S:
            # Not sys.exit: it would unwind only this thread.
            os._exit(128 + signum)


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    """Stands in for the default action, which would end the process."""
    del signum, frame
