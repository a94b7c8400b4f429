"""Whole runs: resuming, stopping, parallelism, and what is left in the workdir."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
import smoke
from tiers import full_but

from jaxattn.errors import DivergedError, InterruptedRun, UserError
from jaxattn.training import loop
from jaxattn.training.checkpoints.checkpoint import Checkpoints
from jaxattn.training.records.writer import read_metrics
from jaxattn.training.run import build

ONE = smoke.one_device()


def config(variant="small", **overrides):
    result = smoke.get_config(variant)
    result.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in overrides.items()}
    )
    return result


def train(config, workdir):
    return loop.train_and_evaluate(config, workdir, devices=ONE)


def last_state(config, workdir):
    run = build(config, devices=ONE)
    checkpoints = Checkpoints(workdir, read_only=True)
    state, step = checkpoints.restore_latest(run.abstract_state)
    assert step == run.total_steps
    return jax.device_get(state)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    results = train(config(), workdir)
    return workdir, results, last_state(config(), workdir)


def rows_of(workdir):
    """Logged rows without what depends on the clock."""
    timed = ("epoch/images_per_s",)
    return [
        {k: v for k, v in row.items() if k not in timed}
        for row in read_metrics(workdir)
    ]


def test_a_run_leaves_its_files(undisturbed):
    workdir, results, _ = undisturbed
    names = {path.name for path in workdir.iterdir()}
    assert names >= {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "history.png",
        "learning_rate.png",
        "confusion_matrix.png",
        "class_accuracy.png",
        "filters.png",
        "report.txt",
        "results.json",
    }
    assert json.loads((workdir / "results.json").read_text()) == results
    assert results["model"] == "efficient_resnet"
    assert results["num_examples"] == {"train": 90, "val": 30, "test": 45}
    assert results["epochs"] == 4
    assert results["best_val_accuracy"] == max(
        row["epoch/val_accuracy"] for row in rows_of(workdir) if "epoch/epoch" in row
    )


def test_a_run_learns(undisturbed):
    workdir, _, _ = undisturbed
    losses = [r["epoch/train_loss"] for r in rows_of(workdir) if "epoch/epoch" in r]
    assert losses[-1] < losses[0] - 0.05


def test_rows_are_logged_at_their_steps(undisturbed):
    workdir, _, _ = undisturbed
    steps = [row["step"] for row in rows_of(workdir) if "step/loss" in row]
    assert steps == list(range(2, 25, 2))
    epochs = [row["step"] for row in rows_of(workdir) if "epoch/epoch" in row]
    assert epochs == [6, 12, 18, 24]


@pytest.mark.slow
def test_two_runs_of_one_seed_are_equal_and_of_two_differ(undisturbed, tmp_path):
    _, _, expected = undisturbed
    train(config(), tmp_path / "same")
    chex.assert_trees_all_equal(last_state(config(), tmp_path / "same"), expected)
    train(config(seed=1), tmp_path / "other")
    other = last_state(config(seed=1), tmp_path / "other")
    assert not np.array_equal(
        other.params["fc"]["kernel"], expected.params["fc"]["kernel"]
    )


@pytest.mark.parametrize(
    ("loader", "stops"),
    full_but(
        [
            # In a step, in the third evaluation, in the report.
            ("resident", (3, 13, 14)),
            ("streamed", (9,)),
        ],
        ("streamed", (9,)),
    ),
)
def test_interrupted_anywhere_it_resumes_exactly(
    loader, stops, undisturbed, tmp_path, monkeypatch
):
    """Attempts are stopped in steps, at epoch ends and in evaluations."""
    reference, reference_results, expected = undisturbed
    for asked in stops:
        monkeypatch.setattr(loop, "Interrupt", lambda n=asked: smoke.InterruptedAt(n))
        with pytest.raises(
            InterruptedRun, match=r"stopped by signal at step \d+ of 24"
        ):
            train(config(pipeline__loader=loader), tmp_path)
    monkeypatch.setattr(loop, "Interrupt", lambda: smoke.InterruptedAt(10**6))
    results = train(config(pipeline__loader=loader), tmp_path)
    chex.assert_trees_all_equal(last_state(config(), tmp_path), expected)
    epochs = [row for row in rows_of(tmp_path) if "epoch/epoch" in row]
    expected_epochs = [row for row in rows_of(reference) if "epoch/epoch" in row]
    assert [row["step"] for row in epochs] == [6, 12, 18, 24]
    for row, wanted in zip(epochs, expected_epochs, strict=True):
        # The mean of a cut epoch is taken over other groups of rows.
        for key in row:
            assert row[key] == pytest.approx(wanted[key], rel=1e-6)
    for key in ("best_val_accuracy", "test_accuracy", "test_accuracy_ema"):
        assert results[key] == reference_results[key]


def start(workdir, *flags, variant="small"):
    """Starts main.py as a user would, on one device."""
    command = [sys.executable, "main.py", "--config", f"tests/smoke.py:{variant}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*command, "--workdir", str(workdir), *flags],
        cwd=smoke.ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process, workdir, step, timeout_s=240):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"ended early: {process.stderr.read()}")
        rows = read_metrics(workdir) if workdir.exists() else []
        if rows and rows[-1]["step"] >= step:
            return
        time.sleep(0.02)
    pytest.fail("no step in time")


@pytest.mark.full
def test_killed_and_terminated_it_resumes_exactly(tmp_path):
    """Two processes' runs are compared: the test's own has eight virtual devices."""
    workdir, flags = tmp_path / "a b", ["--config.num_epochs=12"]
    process = start(workdir, *flags)
    wait_for_step(process, workdir, 8)
    process.kill()
    process.communicate()

    process = start(workdir, *flags)
    wait_for_step(process, workdir, 20)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "repeat the command to go on" in said

    for folder in (workdir, tmp_path / "undisturbed"):
        process = start(folder, *flags)
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
    long = config(num_epochs=12)
    chex.assert_trees_all_equal(
        last_state(long, workdir), last_state(long, tmp_path / "undisturbed")
    )


@pytest.mark.slow
def test_workers_read_what_threads_read(tmp_path):
    """In a process of its own: Grain's workers need a main module to start from."""
    flags = ["--config.num_epochs=1", "--config.pipeline.loader=streamed"]
    for workers in (0, 1):
        folder = tmp_path / str(workers)
        process = start(folder, *flags, f"--config.pipeline.num_workers={workers}")
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
    short = config(num_epochs=1)
    chex.assert_trees_all_equal(
        last_state(short, tmp_path / "0"), last_state(short, tmp_path / "1")
    )


def start_several(count, workdir, *flags, variant="small"):
    """Starts the processes of one run, all on this machine."""
    if count == 1:
        return [start(workdir, *flags, variant=variant)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join = ["--distributed", f"--coordinator=127.0.0.1:{port}"]
    join.append(f"--num_processes={count}")
    return [
        start(workdir, *flags, *join, f"--process_id={i}", variant=variant)
        for i in range(count)
    ]


def wait_for(processes, code=0):
    for process in processes:
        _, said = process.communicate(timeout=400)
        assert process.returncode == code, said


def assert_runs_agree(run, workdir, expected_workdir):
    """Within rounding: several processes sum in another order than one."""
    chex.assert_trees_all_close(
        last_state(run, workdir).variables,
        last_state(run, expected_workdir).variables,
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Each feeds half of every batch; the first one writes."""
    flags = ["--config.num_epochs=1"]
    workdirs = {count: tmp_path / str(count) for count in (1, 2)}
    for count, workdir in workdirs.items():
        wait_for(start_several(count, workdir, *flags, variant="steady"))
    steady = smoke.get_config("steady")
    steady.num_epochs = 1
    assert_runs_agree(steady, workdirs[2], workdirs[1])
    rows, expected = rows_of(workdirs[2]), rows_of(workdirs[1])
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        for key in row:
            assert row[key] == pytest.approx(wanted[key], rel=1e-3)


@pytest.fixture
def photos(tmp_path):
    smoke.write_photos(tmp_path / "photos")
    result = smoke.get_config("folder")
    result.data.path = str(tmp_path / "photos")
    return result


@pytest.mark.slow
def test_run_on_photos_moves_between_process_counts(photos, tmp_path):
    """Two processes, one, two again: what one is. 72 images, 5 steps an epoch."""
    moved, stayed = tmp_path / "moved", tmp_path / "stayed"
    flags = [f"--config.data.path={photos.data.path}", "--config.num_epochs=20"]
    for count, step in ((2, 20), (1, 50)):
        processes = start_several(count, moved, *flags, variant="folder")
        wait_for_step(processes[0], moved, step)
        processes[0].send_signal(signal.SIGTERM)
        wait_for(processes, code=143)
    for count, workdir in ((2, moved), (1, stayed)):
        wait_for(start_several(count, workdir, *flags, variant="folder"))
    photos.num_epochs = 20
    assert_runs_agree(photos, moved, stayed)


@pytest.mark.slow
def test_run_on_photos_moves_between_device_counts(photos, tmp_path, monkeypatch):
    moved, stayed = tmp_path / "moved", tmp_path / "stayed"
    loop.train_and_evaluate(photos, stayed, devices=ONE)
    for count, asked in ((1, 6), (4, 7), (1, 10**6)):
        monkeypatch.setattr(loop, "Interrupt", lambda n=asked: smoke.InterruptedAt(n))
        stops = pytest.raises(InterruptedRun)
        with stops if asked < 100 else contextlib.nullcontext():
            loop.train_and_evaluate(photos, moved, devices=jax.devices()[:count])
    assert_runs_agree(photos, moved, stayed)


def test_a_finished_run_only_reports_again(undisturbed):
    workdir, results, expected = undisturbed
    again = train(config(), workdir)
    timed = {"wall_time_s"}
    assert {k: v for k, v in again.items() if k not in timed} == {
        k: v for k, v in results.items() if k not in timed
    }
    chex.assert_trees_all_equal(last_state(config(), workdir), expected)


@pytest.mark.full
def test_trace_is_beside_the_events_and_changes_nothing(undisturbed, tmp_path, capsys):
    _, _, expected = undisturbed
    traced = config(log__profile_steps=(3, 4))
    train(traced, tmp_path)
    (trace,) = tmp_path.glob("tensorboard/plugins/profile/*/*.xplane.pb")
    assert b"step_num" in trace.read_bytes()  # marks of steps
    said = capsys.readouterr().err
    assert f"trace of steps 3 to 4 in {tmp_path / 'tensorboard'}" in said
    chex.assert_trees_all_equal(last_state(traced, tmp_path), expected)


@pytest.mark.full
def test_tensorboard_shows_scalars_histograms_images_and_texts(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = config(num_epochs=1, log__tensorboard=True)
    train(shown, tmp_path)
    train(shown, tmp_path)  # a finished run, reported again, adds nothing
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"tensors": 0})
    events.Reload()
    assert set(events.Tags()["tensors"]) >= {
        "step/loss",
        "step/learning_rate",
        "epoch/train_loss",
        "epoch/val_accuracy_ema",
        "results/test_accuracy",
        "weights/attention/layer1.0.attention.0.kernel",
        "weights/layer1.0.conv1.kernel",
        "view/augmented_inputs",
        "view/history",
        "view/confusion_matrix",
        "view/reliability",
        "config",
        "model",
    }
    assert [event.step for event in events.Tensors("step/loss")] == [2, 4, 6]
    # TensorBoard sorts groups: those of scalars come first.
    plugins = {"scalars": set(), "images": set(), "histograms": set()}
    for name, groups in plugins.items():
        tags = events.summary_metadata
        groups |= {
            tag.split("/")[0]
            for tag in tags
            if tags[tag].plugin_data.plugin_name == name
        }
    assert max(plugins["scalars"]) < min(plugins["images"] | plugins["histograms"])
    assert len(events.Tensors("view/confusion_matrix")) == 1


@pytest.mark.full
def test_without_validation_the_last_weights_are_tested(tmp_path):
    results = train(config(num_epochs=1, data__val_fraction=0.0), tmp_path)
    assert results["best_val_accuracy"] is None
    assert results["best_epoch"] is None
    assert results["test_accuracy"] == results["last_test_accuracy"]
    assert "no validation split" in (tmp_path / "report.txt").read_text()


@pytest.mark.full
@pytest.mark.parametrize("every_steps", full_but([1, 6], 6))
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    every_steps, tmp_path
):
    """The rate drops from sane to absurd in epoch 2, so a good checkpoint is there."""
    schedule = {
        "name": "multi_step", "learning_rate": 1e-3,
        "milestones": (1,), "decay_rate": 1e30,
    }  # fmt: skip
    bad = config(log__every_steps=every_steps).to_dict() | {"schedule": schedule}
    with pytest.raises(DivergedError, match=r"at step (8|9|10) .*learning rate 1e\+27"):
        train(bad, tmp_path)
    state, step = Checkpoints(tmp_path, read_only=True).restore_latest(
        build(bad, devices=ONE).abstract_state
    )
    assert step == 6
    chex.assert_tree_all_finite(state)


@pytest.mark.full
def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """One step an epoch: the loss of that step is still finite."""
    bad = config(schedule__learning_rate=1e38, batch_size=96)
    with pytest.raises(DivergedError, match=r"weights are not finite at step 1"):
        train(bad, tmp_path)
    assert Checkpoints(tmp_path, read_only=True).all_steps() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"seed: 0 -> 1"),
        ({"data__val_fraction": 0.2}, r"data.val_fraction: 0.25 -> 0.2"),
    ],
)
def test_a_resume_with_another_config_is_refused(change, message, undisturbed):
    workdir, _, _ = undisturbed
    before = (workdir / "config.json").read_text()
    with pytest.raises(UserError, match=f"another config .{message}.; use that one"):
        train(config(**change), workdir)
    assert (workdir / "config.json").read_text() == before


@pytest.mark.full
def test_a_finished_run_is_extended_exactly(two_epochs, tmp_path, capsys):
    """From 2 epochs to 3 the switch of the optimizer stays after the first."""
    longer, extended = config(num_epochs=3), tmp_path / "extended"
    shutil.copytree(two_epochs, extended)
    results = train(longer, extended)
    assert "config changed: num_epochs: 2 -> 3" in capsys.readouterr().err
    wanted = train(longer, tmp_path / "whole")
    states = [last_state(longer, tmp_path / d) for d in ("extended", "whole")]
    chex.assert_trees_all_equal(*states)
    for key in ("epochs", "test_accuracy", "test_accuracy_ema", "best_val_accuracy"):
        assert results[key] == wanted[key]


@pytest.mark.parametrize(
    ("num_epochs", "message"),
    [
        (1, "num_epochs=1: must be at least the 2 done"),
        (
            4,
            "num_epochs: 2 -> 4: with optimizer.switch_fraction=0.5 the 12 steps done"
            " would have been others; to train on from these weights, use another"
            " workdir and --config.init_from={workdir}",
        ),
    ],
)
def test_a_length_that_does_not_fit_names_the_way_on(num_epochs, message, two_epochs):
    message = re.escape(message.format(workdir=two_epochs))
    other = config(num_epochs=num_epochs)
    with pytest.raises(UserError, match=f"^{message}$"):
        train(other, two_epochs)
    other.init_from = str(two_epochs)
    assert build(other, devices=ONE).pretrained.read(print)  # which the line names


@pytest.mark.full
def test_harmless_changes_are_said_and_recorded(undisturbed, capsys):
    workdir, results, _ = undisturbed
    again = train(config(log__every_steps=3, pipeline__loader="streamed"), workdir)
    assert "config changed: log.every_steps: 2 -> 3" in capsys.readouterr().err
    assert json.loads((workdir / "config.json").read_text())["log"]["every_steps"] == 3
    assert again["test_accuracy"] == results["test_accuracy"]
    train(config(), workdir)


def test_checkpoint_of_another_model_is_refused(undisturbed):
    workdir, _, _ = undisturbed
    with pytest.raises(UserError, match=r"of another model or optimizer: .*/bias"):
        train(config(model__base_width=4), workdir)
    assert Checkpoints(workdir, read_only=True).all_steps()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__name": "canet_tin"}, r"model.name='canet_tin': did you mean"),
        ({"schedule__learning_rate": -1.0}, r"schedule.learning_rate=-1.0"),
        ({"optimizer__weight_decay": -1.0}, r"optimizer.weight_decay=-1.0"),
        ({"batch_size": 12}, r"batch_size=12: must be divisible by the 8 devices"),
        ({"num_epochs": 0}, r"num_epochs=0: must be at least 1"),
        ({"dtype": "float16"}, r"dtype='float16': did you mean 'bfloat16'"),
        ({"data_parallel": "mpi"}, r"data_parallel='mpi': choices: jit, pmap"),
        ({"data__path": "/nowhere"}, r"data.path='/nowhere'"),
        ({"variant": "canet", "data__image_size": 12}, r"must be multiples of 8"),
        (
            {"normalize__mean": (0.1, 0.2)},
            r"mean=\(0.1, 0.2\): must be one",
        ),
        ({"normalize__std": (0.0,)}, r"normalize.std=\(0.0,\): must be above 0"),
        (
            {"augment__crop_padding_px": 8, "augment__crop_fill": "reflect"},
            r"crop_padding_px=8: reflection needs less than the image's side, 8",
        ),
        ({"loss__label_smoothing": 1.0}, r"loss.label_smoothing=1.0"),
        ({"steps_per_dispatch": 0}, r"steps_per_dispatch=0"),
        (
            {"accumulate_steps": 4},
            r"accumulate_steps=4: must divide the 2 images .* choices: 1, 2$",
        ),
        ({"log__every_steps": 0}, r"log.every_steps=0"),
        ({"log__profile_steps": (9, 25)}, r"profile_steps=\(9, 25\): must be within t"),
    ],
)
def test_mistakes_are_named_before_anything_is_made(overrides, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        loop.train_and_evaluate(config(**overrides), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (
            "schedule",
            "learning_rate",
            "1e-3",
            r"schedule.learning_rate='1e-3': must be f",
        ),
        (
            "augment",
            "crop_padding_px",
            1.5,
            r"augment.crop_padding_px=1.5: must be int",
        ),
        ("log", "tensorboard", 1, r"log.tensorboard=1: must be bool"),
        ("optimizer", "momentum", True, r"optimizer.momentum=True: must be float"),
    ],
)
def test_a_value_of_another_type_is_named(section, key, value, message):
    wrong = smoke.get_config().to_dict()
    wrong[section][key] = value
    with pytest.raises(UserError, match=message):
        build(wrong, devices=ONE)


def test_a_key_that_no_function_takes_is_named():
    typo = smoke.get_config().to_dict()
    typo["augment"]["flip_probabilty"] = 0.5
    with pytest.raises(
        UserError, match=r"augment.flip_probabilty: .* did you mean 'fl"
    ):
        build(typo, devices=ONE)
