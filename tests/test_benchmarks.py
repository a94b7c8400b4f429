"""What the benchmarks do around the work that they time."""

import functools
import json
import math
import operator
import os
import pathlib
import random
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import smoke

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import (
    blocks,
    compare_torch,
    epoch,
    gpu_suite,
    scaling,
    timing,
)
from benchmarks.gpu_suite import Context, Item, run_items, status
from benchmarks.rows import ROWS
from benchmarks.steps import Work
from jaxattn.data import load_data
from jaxattn.errors import UserError
from jaxattn.training.records.writer import RunWriter
from jaxattn.training.run import build

TIMED = {"items_per_s": [90.0, 100.0, 130.0], "first_call_s": 5.2, "peak_bytes": 2e9}
SLOWER = {"items_per_s": [40.0, 50.0, 60.0], "first_call_s": 3.0, "peak_bytes": 1e9}
FAILED = {"error": "MemoryError: []"}
TRAINED = {
    "epochs": 70,
    "test_accuracy": 0.9312,
    "last_test_accuracy": 0.93,
    "test_accuracy_ema": None,
    "best_val_accuracy": 0.94,
    "images_per_s": 12345.6,
    "wall_time_s": 90.0,
}


# Timing ----------------------------------------------------------------------------


def side(name, log):
    """Makes a side that logs its calls; of nothing that a process imports slowly."""
    call = functools.partial(
        subprocess.run, f"echo {name} >> {log}; sleep 0.05", shell=True
    )
    return functools.partial(timing.Side, call, 10)


@pytest.mark.full
def test_sides_are_timed_in_turn(tmp_path):
    log = tmp_path / "calls"
    sides = {name: side(name, log) for name in "ab"}
    timings = timing.time_in_turn(sides, blocks=3, seconds=0.0)
    # Three calls of each before the blocks, of which each is one call after another.
    assert log.read_text().split() == [*"aaabbb", *3 * "aabb"]
    for timed in timings.values():
        assert len(timed["items_per_s"]) == 3
        assert 0 < max(timed["items_per_s"]) < 10 / 0.05
        assert timed["first_call_s"] > 0.05
        assert timed["peak_bytes"] > 10**6


@pytest.mark.full
def test_failing_side_is_reported_and_the_others_are_timed(tmp_path):
    sides = {
        "raises": functools.partial(operator.truediv, 1, 0),
        "ends": functools.partial(os._exit, 3),
        "works": side("works", tmp_path / "calls"),
    }
    timings = timing.time_in_turn(sides, blocks=2, seconds=0.0)
    assert timings["raises"] == {"error": "ZeroDivisionError: ['division by zero']"}
    assert timings["ends"]["error"].startswith("its process ended")
    assert len(timings["works"]["items_per_s"]) == 2
    assert timing.fastest(timings) == "works"
    assert math.isnan(timing.median(timings["raises"]))


# Tables ----------------------------------------------------------------------------


def speed_row(**changes):
    row = {
        "work": {
            "model": "canet",
            "image_size": 32,
            "batch_size": 64,
            "dtype": "float32",
        },
        "timings": {"jaxattn": TIMED, "compile": SLOWER, "eager": FAILED},
        "fastest_peer": "compile",
        "ratio": 2.0,
        "share_of_flops": 0.123,
        "share_of_bandwidth": 0.3,
    }
    return row | changes


def test_table_shows_medians_with_their_spread():
    *_, line = compare_torch.format_table({"rows": [speed_row()]}).splitlines()
    assert line == (
        "| `canet` | 32, 64 | 100 (90 to 130) | 50 (40 to 60) compile | **2.00** |"
        " 2.00 | 5 s / 3 s | 2.0 GB / 1.0 GB | 12% |"
    )


def test_table_compares_the_fastest_of_any_dtype_and_those_in_float32():
    timings = {
        "jaxattn": SLOWER,
        "jaxattn+bfloat16": TIMED,
        "eager": FAILED,
        "compile": {**SLOWER, "items_per_s": [40.0]},
        "compile+bfloat16": {**SLOWER, "items_per_s": [80.0]},
    }
    row = speed_row(timings=timings, ratio=1.25)
    *_, line = compare_torch.format_table({"rows": [row]}).splitlines()
    assert "| 100 (90 to 130) bfloat16 | 80 (80 to 80) compile bfloat16 |" in line
    assert "| **1.25** | 1.25 |" in line
    row["work"]["dtype"] = "bfloat16"
    *_, line = compare_torch.format_table({"rows": [row]}).splitlines()
    assert "| **1.25** |  |" in line


def test_sides_in_bfloat16_are_compared_on_a_cpu(monkeypatch):
    """The ratio is of the fastest two; its limit is a product in the same dtype."""
    made = {}

    def time_in_turn(sides, **_):
        made.update(sides)
        return {
            name: {**TIMED, "items_per_s": [2.0 if "bfloat16" in name else 1.0]}
            for name in sides
        }

    monkeypatch.setattr(timing, "time_in_turn", time_in_turn)
    monkeypatch.setattr(compare_torch, "_work_per_image", lambda _: (1, 1.0))
    work = next(work for work in compare_torch.rows("cpu") if work.model == "canet")
    limits = {"flops": 1.0, "flops_bfloat16": 4.0, "bytes_per_s": 1.0}
    row = compare_torch.compare(work, limits, blocks=1, seconds=0.0)
    assert row["fastest_peer"] == "channels_last+bfloat16"
    assert (row["ratio"], row["share_of_flops"]) == (1.0, 2.0 * 6 / 4.0)
    for name, side in made.items():
        dtype = "bfloat16" if "bfloat16" in name else "float32"
        assert side.args[0].dtype == dtype, name
    assert made["channels_last+compile+bfloat16"].args[1] == "channels_last+compile"


def test_table_says_that_no_peer_ran():
    timings = {"jaxattn": TIMED, "eager": FAILED}
    row = speed_row(timings=timings, fastest_peer=None, ratio=math.nan)
    *_, line = compare_torch.format_table({"rows": [row]}).splitlines()
    assert "100 (90 to 130) | nan (none ran) None | **nan**" in line


@pytest.fixture
def measured(monkeypatch):
    """Measures in no time; holds what the environment and the limits are."""
    state = types.SimpleNamespace(environment={"device": "cpu"}, flops=1.0)

    monkeypatch.setattr(timing, "environment", lambda _: dict(state.environment))
    monkeypatch.setattr(
        compare_torch,
        "measure_limits",
        lambda _: {"flops": state.flops, "bytes_per_s": 1.0},
    )
    monkeypatch.setattr(
        timing, "time_in_turn", lambda sides, **_: dict.fromkeys(sides, TIMED)
    )
    monkeypatch.setattr(compare_torch, "_work_per_image", lambda _: (1, 1.0))
    return state


def compare_torch_main(monkeypatch, out, *models):
    argv = ["compare_torch.py", "--out", str(out), "--models", *models]
    monkeypatch.setattr(sys, "argv", argv)
    compare_torch.main()
    rows = json.loads(out.read_text())["rows"]
    for row in rows:  # 100 images/s, each 6 times the multiply-accumulates
        assert row["share_of_flops"] == 600 / row["limits"]["flops"]
    return {row["work"]["model"]: row["limits"]["flops"] for row in rows}


def test_row_keeps_the_limits_it_was_measured_beside(measured, monkeypatch, tmp_path):
    out = tmp_path / "torch.json"
    first = compare_torch_main(monkeypatch, out, "canet", "resnet18")
    assert first == {"canet": 1.0, "resnet18": 1.0}
    measured.flops = 2.0
    second = compare_torch_main(monkeypatch, out, "canet")
    assert list(second.items()) == [("canet", 2.0), ("resnet18", 1.0)]


def test_rows_of_two_environments_are_not_mixed(measured, monkeypatch, tmp_path):
    out = tmp_path / "torch.json"
    compare_torch_main(monkeypatch, out, "canet", "resnet18")
    before = out.read_text()
    measured.environment["device"] = "gpu"
    with pytest.raises(SystemExit, match="measure all, or name another file"):
        compare_torch_main(monkeypatch, out, "canet")
    assert out.read_text() == before
    all_anew = compare_torch_main(monkeypatch, out, "canet", "resnet18")
    assert list(all_anew) == ["canet", "resnet18"]


def test_epoch_table_shows_seconds_of_an_epoch():
    row = {
        "work": {"model": "canet", "batch_size": 256},
        "num_train": 1000,
        "num_test": 200,
        "variant": "eager",
        "workers": 4,
        "timings": {"jaxattn": TIMED, "PyTorch": FAILED},
        "ratio": math.nan,
    }
    *_, line = epoch.format_table([row]).splitlines()
    assert line == (
        "| `canet` | 256 | 1,000 + 200 | 10 s, 100 images/s (90 to 130) |"
        " MemoryError: [] eager | 4 | **nan** |"
    )


def test_scaling_counts_three_forward_passes_of_two_operations_a_mac():
    point = {"value": 32, "macs": 10**9, **TIMED}
    assert scaling.gflops(point) == 600
    table = scaling.format_table({"width": [point]})
    assert "| width | 32 | 100 (90 to 130) | 600 |" in table


def test_scaling_varies_one_thing():
    base = scaling.BASE["gpu"]
    assert scaling.at("width", base, 64).model == "canet"
    assert scaling.at("batch_size", base, 8).batch_size == 8
    assert scaling.at("image_size", base, 64).image_size == 64
    assert scaling.at("devices", base, 8) == base


def test_scaling_figure_leaves_out_what_failed():
    points = [
        {"value": 8, "macs": 10**9, **SLOWER},
        {"value": 16, "macs": 10**9, **TIMED},
        {"value": 32, "macs": 10**9, **FAILED},
    ]
    figure = scaling.plot({"batch_size": points, "width": points})
    speeds, _, rates, _ = figure.axes
    assert list(speeds.lines[0].get_xdata()) == [8, 16]
    assert list(speeds.lines[0].get_ydata()) == [50, 100]
    assert list(rates.lines[0].get_ydata()) == [300, 600]


# A whole epoch ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Path of 48 images to train on and 20 to test."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("cifar")
    arrays = {}
    for split, size in (("train", 60), ("test", 20)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
        arrays[f"y_{split}"] = np.arange(size) % 10
    np.savez(folder / "whole.npz", **arrays)
    epoch.write_subset(str(folder / "whole.npz"), str(folder / "part.npz"), 48, None)
    return str(folder / "part.npz")


def test_subset_is_the_first_images(cifar):
    part = load_data("cifar10", path=cifar, val_fraction=0.0)
    whole = load_data("cifar10", path=cifar.replace("part", "whole"), val_fraction=0.0)
    assert (len(part.train), len(part.test)) == (48, 20)
    np.testing.assert_array_equal(part.train.images, whole.train.images[:48])


@pytest.mark.full
def test_our_epoch_has_the_recipe_of_canet(cifar):
    run = epoch._make_run(Work("canet_light", 32, 16, dtype="bfloat16"), cifar)
    assert (run.model.width, run.options.dtype) == (32, "bfloat16")
    assert run.augment.mixes
    assert run.augment.erase_probability == 0.5
    assert (len(run.data.train), run.data.val) == (48, None)
    assert run.parallel.num_devices == 1


@pytest.mark.full
def test_our_epoch_trains_and_tests_on_every_image(monkeypatch):
    # On the run that other tests compile, too.
    run = build(smoke.get_config(), devices=smoke.one_device())
    monkeypatch.setattr(epoch, "_make_run", lambda *_: run)
    made = epoch.make_jax_side(Work("canet_tiny", 8, 16), "")
    first, second = made.call(), made.call()
    assert made.items == len(run.data.train) == 90
    assert first["count"] == second["count"] == 45
    assert first["loss"] != second["loss"]


def test_torch_epoch_trains_and_tests(cifar):
    pytest.importorskip("torch")
    work = Work("canet_tiny", 32, 16)
    made = epoch.make_torch_side(work, cifar, "channels_last", workers=0)
    (train_loss, hits), (test_loss, _) = made.call()
    assert made.items == 48
    assert 48 * 1.5 < train_loss < 48 * 4
    assert 20 * 1.5 < test_loss < 20 * 4
    assert 0 <= hits <= 48


def test_torch_images_are_normalised_and_augmented(cifar):
    torch = pytest.importorskip("torch")
    from benchmarks.pytorch.images import TorchImages

    recipe = epoch.canet.get_config()
    data = load_data("cifar10", cifar, val_fraction=0.0)
    plain = TorchImages(data.test, recipe, train=False)
    x, label = plain[3]
    mean, std = (np.array(v, np.float32) for v in recipe.normalize.values())
    expected = (data.test.images[3] / np.float32(255) - mean) / std
    np.testing.assert_allclose(x.permute(1, 2, 0), expected, rtol=1e-5, atol=1e-6)
    assert label == data.test.labels[3]

    random.seed(0)
    augmented = TorchImages(data.train, recipe, train=True)
    drawn = torch.stack([augmented[0][0] for _ in range(200)])
    assert drawn.shape == (200, 3, 32, 32)
    black = -torch.tensor(mean / std).reshape(3, 1, 1)
    share = (drawn - black).abs().amax(1).lt(1e-4).float().mean()
    # Half of the images lose 12 % to erasing, and all 13 % to the crop's border.
    assert 0.15 < share < 0.23


def test_torch_mixes_the_recipes_share_of_batches():
    torch = pytest.importorskip("torch")
    from benchmarks.pytorch.loop import mix

    augment = epoch.canet.get_config().augment
    random.seed(0)
    torch.manual_seed(0)
    y = torch.arange(8)
    mixed, cut = 0, 0
    for _ in range(300):
        # An image is its label, so that pixels tell where they come from.
        images = y.float().reshape(8, 1, 1, 1).expand(8, 3, 32, 32).clone()
        x, partner, weight = mix(images, y, augment)
        expected = weight * y + (1 - weight) * partner
        torch.testing.assert_close(x.mean((1, 2, 3)), expected, atol=1e-4, rtol=0)
        is_cut = bool(x.frac().eq(0).all()) and partner is not y
        cut += is_cut
        mixed += partner is not y and not is_cut
    assert 60 < mixed < 120
    assert 60 < cut < 120


# The suite -------------------------------------------------------------------------

WRITE = """
import pathlib, time
{body}
pathlib.Path({path!r}).write_text({record!r})
"""


class Suite:
    """Items whose commands are given as Python code."""

    def __init__(self, out):
        self.out = out
        self.begun = []
        self.codes = {}

    def command(self, item):
        self.begun.append(item.name)
        path = str(self.out / "items" / f"{item.name}.json")
        body, record = self.codes.get(item.name, ""), json.dumps({"result": TRAINED})
        code = WRITE.format(body=body, path=path, record=record)
        return [sys.executable, "-c", code]

    def run(self, *items, seconds=60.0):
        self.begun.clear()
        run_items(items, self.command, self.out, time.monotonic() + seconds)
        return {item.name: status(item.name, self.out) for item in items}

    def record(self, name):
        return json.loads((self.out / "items" / f"{name}.json").read_text())


@pytest.fixture
def suite(tmp_path):
    return Suite(tmp_path)


def test_a_failure_is_recorded_and_the_suite_goes_on(suite):
    suite.codes["fake.a"] = "raise ValueError('no such thing')"
    items = [Item("fake.a", 1.0), Item("fake.b", 1.0)]
    assert suite.run(*items) == {"fake.a": "failed", "fake.b": "done"}
    expected = "exit code 1: ValueError: no such thing"
    assert suite.record("fake.a")["error"] == expected
    assert f"failed: {expected}" in (suite.out / "summary.md").read_text()


def test_the_next_call_skips_what_is_done_and_tries_failures_last(suite):
    items = [Item(f"fake.{name}", 1.0) for name in "abc"]
    (suite.out / "items").mkdir()
    gpu_suite.write_record("fake.a", suite.out, {"error": "exit code 1"})
    gpu_suite.write_record("fake.b", suite.out, {"result": {}})
    assert set(suite.run(*items).values()) == {"done"}
    assert suite.begun == ["fake.c", "fake.a"]


@pytest.mark.full
def test_what_overruns_its_limit_ends_with_all_it_started(suite):
    suite.codes["fake.a"] = (
        "import subprocess\n"
        f"subprocess.Popen(['sh', '-c', 'sleep 3; touch {suite.out}/late'])\n"
        "time.sleep(60)"
    )
    start_s = time.monotonic()
    assert suite.run(Item("fake.a", 1.5 / 60)) == {"fake.a": "failed"}
    assert time.monotonic() - start_s < 20
    assert suite.record("fake.a")["error"] == "not done in 0.025 minutes"
    time.sleep(3)
    assert not (suite.out / "late").exists()


SAVES = """
import signal, sys
saved = pathlib.Path({saved!r})
def save(*_):
    saved.touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
saved.exists() or time.sleep(60)
"""


@pytest.mark.full
def test_training_is_asked_to_stop_and_goes_on_in_the_next_call(suite):
    suite.codes["train.canet"] = SAVES.format(saved=str(suite.out / "saved"))
    item = Item("train.canet", 2 / 60)
    assert suite.run(item) == {"train.canet": "unfinished"}
    assert (suite.out / "saved").exists()
    assert suite.run(item) == {"train.canet": "done"}


@pytest.mark.full
def test_training_that_does_not_stop_is_killed(suite, monkeypatch):
    monkeypatch.setattr(gpu_suite, "_GRACE_S", 0.3)
    suite.codes["train.canet"] = (
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    )
    start_s = time.monotonic()
    assert suite.run(Item("train.canet", 1 / 60)) == {"train.canet": "unfinished"}
    assert time.monotonic() - start_s < 20


@pytest.mark.full
def test_the_suite_ends_in_time(suite):
    """What needs more time than is left does not begin; training takes what is left."""
    suite.codes["train.canet_tiny"] = SAVES.format(saved=str(suite.out / "saved"))
    suite.codes["fake.c"] = "time.sleep(60)"
    items = [Item("fake.a", 1.0), Item("train.canet_tiny", 0.5), Item("fake.c", 2 / 60)]
    start_s = time.monotonic()
    states = suite.run(*items, seconds=1.6)
    assert states["fake.a"] == states["fake.c"] == "not begun"
    assert states["train.canet_tiny"] == "unfinished"
    assert time.monotonic() - start_s < 10


@pytest.mark.full
def test_a_benchmark_that_the_end_cuts_off_has_not_failed(suite):
    suite.codes["fake.a"] = "time.sleep(60)"
    assert suite.run(Item("fake.a", 2 / 60), seconds=1.2) == {"fake.a": "unfinished"}


def test_every_row_has_an_item():
    names = [f"speed.{work.model}" for work in compare_torch.rows("gpu")]
    names += [f"blocks.{block}" for block in blocks._BLOCKS]
    missing = {name for name in names if name not in gpu_suite.MINUTES}
    assert not missing
    kinds = {name.split(".")[0] for name in gpu_suite.MINUTES}
    assert kinds == set(gpu_suite._RUN)
    assert not gpu_suite._SMOKE - set(gpu_suite.MINUTES)


def test_items_are_selected_by_name_and_kind():
    chosen = gpu_suite.select_items(["train.canet", "scaling"], smoke=True)
    assert [item.name for item in chosen] == [
        "train.canet",
        "scaling.batch_size",
        "scaling.image_size",
        "scaling.width",
    ]
    everything = gpu_suite.select_items([], smoke=False)
    assert [item.name for item in everything] == list(gpu_suite.MINUTES)
    assert len(gpu_suite.select_items([], smoke=True)) < len(everything)
    with pytest.raises(UserError, match=r"--items='trains': did you mean 'train'"):
        gpu_suite.select_items(["trains"], smoke=False)


@pytest.mark.full
def test_training_runs_are_rows_in_the_devices_dtype(cifar, tmp_path):
    context = Context(cifar, tmp_path, smoke=False)
    names = [n.partition(".")[2] for n in gpu_suite.MINUTES if n.startswith("train.")]
    for what in names:
        run = gpu_suite.make_run(what, context)
        exact = what == "sccnet18"
        assert run.trial.config["dtype"] == ("float32" if exact else "bfloat16")
        assert run.trial.config["data"]["path"] == cifar
        (seed,) = ROWS[what].seeds
        assert run.trial.workdir == tmp_path / "runs" / f"{what}_seed{seed}"
    smoke_run = gpu_suite.make_run("canet", Context(cifar, tmp_path, smoke=True))
    assert smoke_run.trial.config["num_epochs"] == 1


def leave_run(workdir, epochs):
    """Makes a training run's workdir, finished after 70 epochs."""
    workdir.mkdir(parents=True)
    config = {"seed": 42, "num_epochs": 70, "model": {"name": "canet"}, "data": {}}
    (workdir / "config.json").write_text(json.dumps(config))
    with RunWriter(workdir, start_step=0, tensorboard=False) as writer:
        writer.write_scalars(7, {"epoch/epoch": epochs, "epoch/val_accuracy": 0.5})
    if epochs == 70:
        (workdir / "results.json").write_text(json.dumps(TRAINED))


def test_summary_shows_results_and_how_far_a_run_is(tmp_path):
    names = ["speed.canet", "blocks.CBAM", "train.canet", "train.canet_pro"]
    items = [Item(name, 1.0) for name in [*names, "scaling.width"]]
    (tmp_path / "items").mkdir()
    plain = {f"conv 3x3{suffix}": TIMED for suffix in ("", ", PyTorch contiguous")}
    results = {
        "speed.canet": speed_row(),
        "blocks.CBAM": {
            "block": "CBAM",
            "plain": "conv 3x3",
            "timings": {"CBAM": TIMED, "CBAM, PyTorch contiguous": SLOWER, **plain},
        },
        "train.canet": {},
        "scaling.width": [{"value": 16, "macs": 10**9, **TIMED}],
    }
    environment = {"hardware": "a card", "versions": {"jax": "1"}}
    for name, result in results.items():
        record = {"environment": environment, "wall_s": 61.0, "result": result}
        gpu_suite.write_record(name, tmp_path, record)
    gpu_suite.write_record("train.canet_pro", tmp_path, {"unfinished": "stopped"})
    for name, epochs in (("canet", 70), ("canet_pro", 3)):
        leave_run(tmp_path / "runs" / f"{name}_seed42", epochs)
    gpu_suite.write_summary(items, tmp_path)
    text = (tmp_path / "summary.md").read_text()
    for line in (
        "a card; jax 1",
        "| CBAM | 10 ms | 1.00 (conv 3x3) | 20 ms | 2.00 | **2.00** |",
        "| `canet` | 70 | 1 | 93.12 % | 93.50 % | -0.38 | 90 s |",
        "| `canet_pro` |  |  | cut short at epoch 3 of 70, validation 50.00% |"
        " 93.56 % |  |  |",
        "| width | 16 | 100 (90 to 130) | 600 |",
        "| train.canet_pro | unfinished: stopped |  |",
    ):
        assert line in text.splitlines()
    assert (tmp_path / "scaling.png").stat().st_size > 1000
