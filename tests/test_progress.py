import io
import re
import time

import pytest

from jaxattn.tasks.classification import Classification
from jaxattn.training.records import phases
from jaxattn.training.records.phases import Phases
from jaxattn.training.records.progress import Progress


class Clock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def make(stream, clock, *, start_step=0):
    return Progress(
        total_steps=100,
        start_step=start_step,
        num_epochs=4,
        batch_size=10,
        task=Classification(),
        phases=Phases(stream),
        clock=clock,
    )


def advance(progress, clock, steps, *, seconds):
    for step in steps:
        clock.now += seconds
        progress.update(step, epoch=1, figures={"loss": 1.5, "accuracy": 0.25})


ROW = {"epoch": 3, "train_loss": 1.234, "train_accuracy": 0.567}


def test_plain_lines_tell_speed_and_eta(clock):
    stream = io.StringIO()
    progress = make(stream, clock)
    advance(progress, clock, [1, 21], seconds=20)  # 1 step/s; 79 to go
    last = stream.getvalue().splitlines()[-1]
    assert last == (
        "epoch 1/4  step 21/100  loss 1.500  acc 25.0%  10 images/s  eta 1:19"
    )


def test_plain_lines_come_at_most_every_ten_seconds(clock):
    stream = io.StringIO()
    advance(make(stream, clock), clock, range(1, 36), seconds=1)
    assert len(stream.getvalue().splitlines()) == 3


def test_speed_leaves_compilation_out(clock):
    progress = make(io.StringIO(), clock)
    clock.now += 1000  # compiling
    advance(progress, clock, [1, 2, 3], seconds=1)
    assert progress.images_per_s == pytest.approx(10)


def test_speed_leaves_pauses_out(clock):
    progress = make(io.StringIO(), clock)
    advance(progress, clock, [1, 2], seconds=1)
    with progress.paused():
        clock.now += 1000
    advance(progress, clock, [3], seconds=1)
    assert progress.images_per_s == pytest.approx(10)


def test_speed_is_not_changed_by_a_pause_itself(clock):
    progress = make(io.StringIO(), clock)
    advance(progress, clock, [1, 2], seconds=1)
    with progress.paused():
        clock.now += 1000
    assert progress.images_per_s == pytest.approx(10)


def test_speed_of_a_resumed_run_counts_only_its_own_steps(clock):
    progress = make(io.StringIO(), clock, start_step=90)
    advance(progress, clock, [91, 92], seconds=1)
    assert progress.images_per_s == pytest.approx(10)


def test_speed_is_unknown_after_one_update(clock):
    progress = make(io.StringIO(), clock)
    advance(progress, clock, [1], seconds=1)
    assert progress.images_per_s is None


def test_eta_includes_evaluations(clock):
    stream = io.StringIO()
    progress = make(stream, clock)
    advance(progress, clock, [0, 50], seconds=50)
    with progress.paused():
        clock.now += 50
    progress.epoch_line(ROW)
    assert stream.getvalue().endswith("eta 1:40\n")


def test_epoch_line_leaves_out_what_was_not_measured(clock):
    stream = io.StringIO()
    make(stream, clock).epoch_line(ROW | {"val_loss": None})
    assert stream.getvalue() == "epoch 3/4  train loss 1.234 acc 56.7%\n"


def test_epoch_line_tells_validation_of_raw_and_ema_weights(clock):
    stream = io.StringIO()
    raw = {"val_loss": 1.0, "val_accuracy": 0.6}
    ema = {"val_loss_ema": 0.9, "val_accuracy_ema": 0.7}
    make(stream, clock).epoch_line(ROW | raw | ema)
    assert "val loss 1.000 acc 60.0%  ema loss 0.900 acc 70.0%" in stream.getvalue()


def test_terminal_gets_a_bar_that_redraws_in_place(clock):
    stream = Terminal()
    progress = make(stream, clock)
    advance(progress, clock, [1, 50], seconds=1)
    bar = stream.getvalue().rsplit("\r", 1)[-1]
    progress.close()
    assert re.search(r"epoch 1/4 +50%\|.*\| 50/100, loss 1\.500 .* eta 0:01", bar)


def test_plain_stream_gets_no_carriage_returns(clock):
    stream = io.StringIO()
    progress = make(stream, clock)
    advance(progress, clock, range(1, 50), seconds=1)
    progress.close()
    assert "\r" not in stream.getvalue()


def test_permanent_lines_do_not_break_the_bar(clock):
    stream = Terminal()
    progress = make(stream, clock)
    advance(progress, clock, [1, 50], seconds=1)
    progress.message("a line")
    lines = re.split(r"[\r\n]", stream.getvalue())
    progress.close()
    assert "a line" in lines  # on a line of its own ...
    assert "50/100" in lines[-1]  # ... with the bar drawn again below


def test_bar_of_a_resumed_run_starts_where_the_run_does(clock):
    stream = Terminal()
    progress = make(stream, clock, start_step=90)
    progress.close()
    assert "90%" in stream.getvalue()


# Phases


@pytest.fixture
def quick(monkeypatch):
    """Lines and redraws that come within a test."""
    monkeypatch.setattr(phases, "_BETWEEN_LINES_S", (0.01, 0.02))
    monkeypatch.setattr(phases, "_BETWEEN_REDRAWS_S", 0.01)


def until(holds):
    limit = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.mark.usefixtures("quick")
def test_a_long_phase_goes_on_telling():
    stream = io.StringIO()
    with Phases(stream).phase("compiling", after_s=0.0) as show:
        until(lambda: stream.getvalue().count("compiling") > 2)
        show("testing 4,000/10,000")
        until(lambda: "testing" in stream.getvalue())
    first, second, *_, last = stream.getvalue().splitlines()
    assert first.startswith("compiling")
    assert re.fullmatch(r"compiling  0:\d\d", second)
    assert re.fullmatch(r"testing 4,000/10,000  0:\d\d", last)
    assert "\r" not in stream.getvalue()


@pytest.mark.usefixtures("quick")
def test_a_short_phase_leaves_a_file_as_it_is():
    stream = io.StringIO()
    with Phases(stream).phase("compiling", after_s=60.0):
        time.sleep(0.05)
    assert stream.getvalue() == ""


@pytest.mark.usefixtures("quick")
def test_a_phase_leaves_nothing_on_a_terminal():
    stream = Terminal()
    with Phases(stream).phase("compiling, " + 30 * "long "):
        until(lambda: "compiling" in stream.getvalue())
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")
    drawn = stream.getvalue().split("\r\x1b[K")
    assert max(map(len, drawn)) < 80  # a line that breaks could not be erased


@pytest.mark.usefixtures("quick")
def test_a_phase_that_fails_ends():
    stream = io.StringIO()
    with pytest.raises(KeyError), Phases(stream).phase("compiling", after_s=0.0):
        raise KeyError
    written = stream.getvalue()
    time.sleep(0.05)
    assert stream.getvalue() == written


@pytest.mark.usefixtures("quick")
def test_permanent_lines_do_not_break_a_phase():
    stream = Terminal()
    line = Phases(stream)
    with line.phase("compiling"):
        until(lambda: "compiling" in stream.getvalue())
        line.message("a line")
    assert "\r\x1b[Ka line\n" in stream.getvalue()


@pytest.mark.usefixtures("quick")
def test_the_bar_gives_way_to_a_phase_and_comes_back(clock):
    stream = Terminal()
    progress = make(stream, clock)
    advance(progress, clock, [1, 50], seconds=1)
    with progress.phase("validating"):
        before = len(stream.getvalue())
        until(lambda: "validating" in stream.getvalue())
        assert "50/100" not in stream.getvalue()[before:]
    after = stream.getvalue().rsplit("validating", 1)[-1]
    progress.close()
    assert "50/100" in after
