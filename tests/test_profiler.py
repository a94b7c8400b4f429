"""Which steps are traced. That a run writes the trace is in `test_loop.py`."""

import types

import jax
import pytest

from jaxattn.errors import UserError
from jaxattn.training.options import Log
from jaxattn.training.records.profiler import Profiler
from jaxattn.training.trainer import _chunks


@pytest.fixture
def calls(monkeypatch):
    """What the profiler asks of JAX."""
    made = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: made.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: made.append("stop"))
    return made


def traced(calls, tmp_path, start, stop):
    """The steps of a run that a trace of steps 3 to 5 has, and what was said."""
    said, steps = [], []
    profiler = Profiler((3, 5), tmp_path, said.append)
    for step in range(start, stop):
        profiler.before(step, None)
        if calls and calls[-1] != "stop":
            steps.append(step + 1)
        profiler.after(step + 1, None)
    profiler.close()
    assert calls in ([], [tmp_path, "stop"])
    return steps, said


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [(0, 8, [3, 4, 5]), (3, 8, [4, 5]), (0, 4, [3, 4]), (5, 8, []), (0, 2, [])],
)
def test_exactly_the_steps_of_the_range_are_traced(
    calls, tmp_path, start, stop, expected
):
    """Whole, resumed within, interrupted within, resumed past, interrupted before."""
    steps, said = traced(calls, tmp_path, start, stop)
    assert steps == expected
    assert said == ([f"trace of steps 3 to 5 in {tmp_path}"] if expected else [])


def test_dispatches_end_where_a_trace_begins_and_ends():
    run = types.SimpleNamespace(
        steps_per_epoch=6, steps_per_dispatch=25, log=Log(profile_steps=(3, 8))
    )
    chunks = _chunks(iter(range(1, 15)), 0, run)  # pyright: ignore
    assert list(chunks) == [[1, 2], [3, 4, 5, 6], [7, 8], [9, 10, 11, 12], [13, 14]]


def test_steps_before_a_trace_are_dispatched_as_those_in_it():
    run = types.SimpleNamespace(
        steps_per_epoch=20, steps_per_dispatch=4, log=Log(profile_steps=(10, 15))
    )
    chunks = _chunks(iter(range(1, 19)), 0, run)  # pyright: ignore
    assert [len(chunk) for chunk in chunks] == [3, 4, 2, 4, 2, 3]


@pytest.mark.parametrize("steps", [(5,), (0, 3), (4, 3), (1, 2, 3)])
def test_range_that_is_none_is_refused(steps):
    with pytest.raises(UserError, match=r"log.profile_steps=\(.*\): must be \(first,"):
        Log(profile_steps=steps)
