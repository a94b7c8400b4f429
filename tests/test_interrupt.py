import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxattn.training.guards.interrupt import Interrupt

# One call into C that takes longer than any test and lets no Python handler run.
LONG_C_CALL = """
import hashlib, sys
from jaxattn.training.guards.interrupt import Interrupt
with Interrupt():
    print("inside", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""

COMPILATION = """
import jax
from jaxattn.training.guards.interrupt import Interrupt

def f(x):
    for _ in range(8000):
        x = x * x + 1
    return x

lowered = jax.jit(f).lower(1.0)
with Interrupt():
    print("inside", flush=True)
    lowered.compile()
    print("compiled", flush=True)
"""


def start(code):
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "inside\n", process.communicate()[1]
    time.sleep(0.2)  # from the line into the call
    return process


def wait_for(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize(
    ("signum", "name", "exit_code"),
    [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "SIGINT", 130)],
)
def test_signal_is_heard_inside_a_c_call_and_the_second_exits(signum, name, exit_code):
    process = start(LONG_C_CALL)
    process.send_signal(signum)
    line = process.stderr.readline()
    assert line == (
        f"{name}: will save after this step and stop; a second signal stops at once\n"
    )
    assert process.poll() is None  # the call goes on
    time.sleep(0.2)
    process.send_signal(signum)
    assert process.wait(timeout=5) == exit_code
    process.communicate()


def test_signal_is_heard_while_xla_compiles():
    process = start(COMPILATION)
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline().startswith("SIGTERM: will save")
    process.kill()
    assert "compiled" not in process.communicate()[0]


def test_flag_tells_the_signal_and_the_exit_code(capfd):
    with Interrupt() as interrupt:
        assert not interrupt.requested
        assert interrupt.exit_code == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert wait_for(lambda: interrupt.requested)
        assert interrupt.signum == signal.SIGTERM
        assert interrupt.exit_code == 143
    assert capfd.readouterr().err.count("SIGTERM") == 1


def test_copies_of_one_signal_count_once(capfd):
    with Interrupt() as interrupt:
        for _ in range(5):
            os.kill(os.getpid(), signal.SIGINT)
        assert wait_for(lambda: interrupt.requested)
    assert capfd.readouterr().err.count("SIGINT") == 1


def test_other_signals_are_left_alone():
    heard = []
    earlier = signal.signal(signal.SIGUSR1, lambda *args: heard.append(args))
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert wait_for(lambda: heard)
            time.sleep(0.05)
            assert not interrupt.requested
    finally:
        signal.signal(signal.SIGUSR1, earlier)


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_earlier_handlers_come_back(error):
    def mine(signum, frame):
        pass

    earlier = signal.signal(signal.SIGTERM, mine)
    interactive = signal.getsignal(signal.SIGINT)
    wakeup_fd = signal.set_wakeup_fd(-1)
    threads = threading.active_count()
    try:
        with contextlib.suppress(RuntimeError), Interrupt():
            assert signal.getsignal(signal.SIGTERM) is not mine
            if error:
                raise error
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is interactive
        assert signal.set_wakeup_fd(-1) == -1
        assert threading.active_count() == threads
    finally:
        signal.signal(signal.SIGTERM, earlier)
        signal.set_wakeup_fd(wakeup_fd)


def test_another_thread_gets_a_flag_that_is_never_set():
    seen = []

    def body():
        with Interrupt() as interrupt:
            seen.append(interrupt.requested)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]
