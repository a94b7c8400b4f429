import logging
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from tiers import full_but

from jaxattn.errors import MachineError, UserError
from jaxattn.training.checkpoints import checkpoint
from jaxattn.training.checkpoints.checkpoint import (
    Checkpoints,
    find_damage,
)
from jaxattn.training.guards import lock
from jaxattn.training.guards.lock import workdir_lock


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema_params: dict | None
    key: jax.Array


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def make_state(step, num_classes=3, ema=True):
    """A small state of the trainer's kind; all its values depend on the step."""
    rng = np.random.default_rng(step)

    def draw(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    params = {
        "layer1.0": {"conv1": {"kernel": draw(3, 3, 2, 4)}},
        "head": {"kernel": draw(4, num_classes), "bias": draw(num_classes)},
    }
    updates, opt_state = OPTIMIZER.update(params, OPTIMIZER.init(params), params)
    return State(
        step=jnp.int32(step),
        params=optax.apply_updates(params, updates),
        batch_stats={"bn1": {"mean": draw(4), "half": draw(4, dtype=jnp.bfloat16)}},
        opt_state=opt_state,
        ema_params=params if ema else None,
        key=jnp.asarray(rng.integers(2**32, size=2), jnp.uint32),
    )


def abstract(state, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), *map(
        jax.device_get, (actual, expected)
    ))  # fmt: skip
    assert all(jax.tree.leaves(same)), same


def folder(workdir, step):
    return workdir / "checkpoints" / str(step)


def largest_file(workdir, step):
    files = [f for f in folder(workdir, step).rglob("*") if f.is_file()]
    return max(files, key=lambda f: f.stat().st_size)


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def two_saves(tmp_path, checkpoints):
    """A workdir with intact steps 1 and 2, 2 being better."""
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {"val_accuracy": step / 10})
    return tmp_path


@pytest.mark.parametrize("ema", [True, False])
def test_round_trip_is_bit_exact(checkpoints, ema):
    state = make_state(7, ema=ema)
    checkpoints.save(7, state, None)
    restored, step = checkpoints.restore_latest(abstract(state))
    assert step == 7
    assert isinstance(restored, State)
    assert_identical(restored, state)


def test_arrays_serve_as_target(checkpoints):
    checkpoints.save(1, make_state(1), None)
    restored, _ = checkpoints.restore_latest(make_state(2))
    assert_identical(restored, make_state(1))


def test_a_part_is_restored_where_asked_for(checkpoints):
    state = make_state(1)
    checkpoints.save(1, state, {"val_accuracy": 0.5})
    target = {"params": abstract(state).params}
    for restored, _ in (
        checkpoints.restore_latest(target, partial=True),
        checkpoints.restore_best(target, "val_accuracy", partial=True),
    ):
        assert_identical(restored, {"params": state.params})
    with pytest.raises(UserError, match=r"nothing wanted\) and \d+ more"):
        checkpoints.restore_latest(target)


def test_a_part_must_be_there(checkpoints):
    checkpoints.save(1, make_state(1, ema=False), None)
    target = {"ema_params": abstract(make_state(1)).ema_params}
    with pytest.raises(UserError, match=r"ema_params/.*nothing saved"):
        checkpoints.restore_latest(target, partial=True)


@pytest.mark.parametrize(("saved_on", "restored_on"), [(1, 8), (8, 1), (8, 4)])
def test_restores_on_another_device_count(checkpoints, saved_on, restored_on):
    def replicated(count):
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:count]), "data")
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    state = jax.device_put(make_state(1), replicated(saved_on))
    checkpoints.save(1, state, None)
    target = abstract(state, replicated(restored_on))
    restored, _ = checkpoints.restore_latest(target)
    assert_identical(restored, make_state(1))
    for leaf in jax.tree.leaves(restored):
        assert leaf.sharding == replicated(restored_on)


def test_no_checkpoint_restores_nothing(checkpoints):
    assert checkpoints.restore_latest(make_state(0)) is None
    assert checkpoints.restore_best(make_state(0), "val_accuracy") is None


def test_keeps_newest_two_and_both_bests(checkpoints):
    raw = {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.4, 6: 0.5}
    ema = {1: 0.1, 2: 0.2, 3: 0.9, 4: 0.3, 5: 0.4, 6: 0.5}
    for step in raw:
        metrics = {"val_accuracy": raw[step], "val_accuracy_ema": ema[step]}
        checkpoints.save(step, make_state(step), metrics)
    checkpoints.save(7, make_state(7), None)
    assert checkpoints.all_steps() == [2, 3, 6, 7]
    for metric, best in (("val_accuracy", 2), ("val_accuracy_ema", 3)):
        restored, step = checkpoints.restore_best(make_state(0), metric)
        assert step == best
        assert_identical(restored, make_state(best))


@pytest.mark.parametrize("unknown", [float("nan"), float("inf"), None, "absent"])
def test_unknown_metric_is_never_best(checkpoints, unknown):
    metrics = {} if unknown == "absent" else {"val_accuracy": unknown}
    checkpoints.save(1, make_state(1), {"val_accuracy": 0.5})
    for step in (2, 3, 4):
        checkpoints.save(step, make_state(step), metrics)
    assert checkpoints.all_steps() == [1, 3, 4]
    assert checkpoints.best_step("val_accuracy") == 1
    assert checkpoints.best_step("val_accuracy_ema") is None


def test_tie_keeps_the_earlier_best(checkpoints):
    for step, value in enumerate([0.1, 0.5, 0.5, 0.5, 0.2, 0.5]):
        checkpoints.save(step, make_state(step), {"val_accuracy": value})
    assert checkpoints.best_step("val_accuracy") == 1
    assert checkpoints.all_steps() == [1, 4, 5]


def test_second_save_of_a_step_replaces_it(checkpoints):
    checkpoints.save(5, make_state(1), None)
    checkpoints.save(5, make_state(2), {"val_accuracy": 0.5})
    assert checkpoints.all_steps() == [5]
    restored, _ = checkpoints.restore_best(make_state(0), "val_accuracy")
    assert_identical(restored, make_state(2))


def test_second_save_without_metrics_keeps_them(checkpoints):
    checkpoints.save(5, make_state(5), {"val_accuracy": 0.5})
    checkpoints.save(5, make_state(5), None)
    assert checkpoints.metrics(5) == {"val_accuracy": 0.5}


def test_orbax_manager_reads_the_folder(two_saves):
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(two_saves / "checkpoints") as manager:
        assert manager.all_steps() == [1, 2]
        restored = manager.restore(2, args=ocp.args.StandardRestore())
    chex.assert_trees_all_equal(restored["params"], make_state(2).params)


def truncate_manifest(path):
    os.truncate(folder(path, 2) / "manifest.json", 100)
    return "manifest.json"


def flip_data(path):
    flip_byte(largest_file(path, 2))
    return largest_file(path, 2).name


def truncate(path):
    file = largest_file(path, 2)
    os.truncate(file, file.stat().st_size // 2)
    return file.name


def delete(path):
    file = largest_file(path, 2)
    file.unlink()
    return file.name


def empty_folder(path):
    shutil.rmtree(folder(path, 2))
    folder(path, 2).mkdir()
    return "manifest.json"


DAMAGES = [truncate_manifest, flip_data, truncate, delete, empty_folder]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_step_is_named_and_the_older_used(two_saves, caplog, damage):
    file = damage(two_saves)
    reopened = Checkpoints(two_saves)
    for restore in (
        lambda: reopened.restore_latest(make_state(0)),
        lambda: reopened.restore_best(make_state(0), "val_accuracy"),
    ):
        caplog.clear()
        restored, step = restore()
        assert step == 1
        assert_identical(restored, make_state(1))
        if damage is empty_folder and not caplog.records:
            continue  # without its metrics it is no candidate for the best
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        message = record.getMessage()
        assert f"{folder(two_saves, 2)} is damaged" in message
        assert file in message
        assert "step 1 is used instead" in message
        assert "\n" not in message


def test_all_damaged_refuses(two_saves):
    for step in (1, 2):
        flip_byte(largest_file(two_saves, step))
    reopened = Checkpoints(two_saves)
    with pytest.raises(UserError, match=r"2 is damaged.*1 is damaged.*no intact"):
        reopened.restore_latest(make_state(0))
    with pytest.raises(UserError, match=r"2 is damaged.*1 is damaged.*no intact"):
        reopened.restore_best(make_state(0), "val_accuracy")


def test_damaged_step_is_no_fallback(two_saves):
    flip_byte(largest_file(two_saves, 2))
    reopened = Checkpoints(two_saves)
    reopened.restore_latest(make_state(0))
    reopened.save(3, make_state(3), None)
    assert reopened.all_steps() == [1, 3]


def test_damaged_step_is_replaced_when_reached_again(two_saves, caplog):
    flip_byte(largest_file(two_saves, 2))
    reopened = Checkpoints(two_saves)
    reopened.restore_latest(make_state(0))
    reopened.save(2, make_state(2), None)
    caplog.clear()
    restored, step = reopened.restore_latest(make_state(0))
    assert step == 2
    assert_identical(restored, make_state(2))
    assert not caplog.records


def test_strangers_are_ignored_with_a_warning(two_saves, caplog):
    (two_saves / "checkpoints" / "notes.txt").write_text("mine")
    (two_saves / "checkpoints" / "9").write_text("a file, not a step")
    (two_saves / "checkpoints" / "best model").mkdir()
    reopened = Checkpoints(two_saves)
    (record,) = caplog.records
    assert "9, best model, notes.txt" in record.getMessage()
    assert reopened.restore_latest(make_state(0))[1] == 2
    reopened.save(3, make_state(3), None)
    assert (two_saves / "checkpoints" / "best model").is_dir()


def test_other_shape_names_the_parameter_in_one_line(checkpoints):
    checkpoints.save(1, make_state(1), None)
    with pytest.raises(UserError) as caught:
        checkpoints.restore_latest(make_state(0, num_classes=5))
    message = str(caught.value)
    assert "params/head/kernel (float32[4,3] saved, float32[4,5] wanted)" in message
    assert "\n" not in message
    assert len(message) < 600


def test_other_structure_names_the_parameter(checkpoints):
    checkpoints.save(1, make_state(1), None)
    with pytest.raises(UserError, match=r"ema_params/head/bias .* nothing wanted"):
        checkpoints.restore_latest(make_state(0, ema=False))


def test_missing_parameter_and_other_dtype_are_named(checkpoints):
    checkpoints.save(1, {"a": jnp.zeros(2), "b": jnp.zeros(2)}, None)
    target = {"a": jnp.zeros(2, jnp.int32), "b": jnp.zeros(2), "c": jnp.zeros(())}
    with pytest.raises(UserError, match=r"a \(float32\[2\] saved, int32\[2\] wanted"):
        checkpoints.restore_latest(target)
    with pytest.raises(UserError, match=r"c \(nothing saved, float32\[\] wanted"):
        checkpoints.restore_latest(target)


class Killed(BaseException):
    """Like a kill, it passes every `except Exception`."""


@pytest.fixture
def kill_before(monkeypatch):
    """Ends a save just before its n-th change to the file system."""
    left = [None]

    def guard(function):
        def guarded(*args, **kwargs):
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            return function(*args, **kwargs)

        return guarded

    for owner, name in (
        (pathlib.Path, "rename"),
        (pathlib.Path, "write_text"),
        (os, "unlink"),
        (os, "rmdir"),
    ):
        monkeypatch.setattr(owner, name, guard(getattr(owner, name)))

    def arm(count):
        left[0] = count

    return arm


@pytest.mark.parametrize("saved", full_but([2, 3], 2))
def test_kill_before_any_change_leaves_whole_checkpoints(
    two_saves, tmp_path_factory, kill_before, saved
):
    # The save of 3 deletes step 1, that of 2 replaces step 2.
    state = make_state(saved)
    for count in range(1000):
        workdir = tmp_path_factory.mktemp("run")
        shutil.copytree(two_saves, workdir, dirs_exist_ok=True)
        writer = Checkpoints(workdir)
        kill_before(count)
        try:
            writer.save(saved, state, {"val_accuracy": 0.5})
            killed = False
        except Killed:
            killed = True
        kill_before(None)
        reopened = Checkpoints(workdir)
        assert reopened.restore_latest(state)[1] in (2, saved)
        for step in reopened.all_steps():
            assert find_damage(folder(workdir, step)) is None
        assert not any((workdir / "checkpoints" / ".tmp").iterdir())
        writer.close()
        reopened.close()
        if not killed:
            break
    assert count > 20  # the kills were many


SAVE_LOOP = """
import sys
import jax.numpy as jnp
from jaxattn.training.checkpoints.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
found = checkpoints.restore_latest({"w": jnp.zeros(2000)})
step = found[1] if found else 0
while True:
    step += 1
    checkpoints.save(step, {"w": jnp.full(2000, float(step))}, {"val_accuracy": 0.5})
    print(step, flush=True)
"""


def kill_during_saves(workdir, seed):
    """Kills a saving process at a random moment; returns its last reported step."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_LOOP, str(workdir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline()
    time.sleep(random.Random(seed).uniform(0, 0.3))
    process.kill()
    rest, errors = process.communicate()
    assert first, errors
    return int([first, *rest.splitlines()][-1])


@pytest.mark.parametrize(
    "num_kills",
    [
        pytest.param(2, marks=pytest.mark.full),
        pytest.param(60, marks=pytest.mark.slow),
    ],
)
def test_kill_at_random_moments_loses_no_committed_step(tmp_path, caplog, num_kills):
    for seed in range(num_kills):
        reported = kill_during_saves(tmp_path, seed)
        checkpoints = Checkpoints(tmp_path)
        restored, step = checkpoints.restore_latest({"w": jnp.zeros(2000)})
        # The kill may fall between the commit and the report.
        assert step in (reported, reported + 1)
        np.testing.assert_array_equal(restored["w"], np.full(2000, step))
        assert not caplog.records
        checkpoints.close()


def test_failed_write_names_the_path_and_keeps_the_rest(two_saves, checkpoints, caplog):
    # A limit on the size of files stands for a full disk.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"w": np.random.default_rng(0).standard_normal(20_000)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(MachineError) as caught:
            checkpoints.save(3, big, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{folder(two_saves, 3)} could not be written: File too" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not caplog.records  # Orbax would add 200 lines
    assert not any((two_saves / "checkpoints" / ".tmp").iterdir())  # space is freed
    assert checkpoints.restore_latest(make_state(0))[1] == 2
    checkpoints.save(3, make_state(3), None)
    assert checkpoints.restore_latest(make_state(0))[1] == 3


def test_unwritable_workdir_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/checkpoints: Not a directory"):
        Checkpoints(tmp_path / "file")
    with (
        pytest.raises(UserError, match="cannot be written"),
        workdir_lock(tmp_path / "file" / "run"),
    ):
        pass


def test_reader_leaves_a_running_save_alone(two_saves):
    unfinished = two_saves / "checkpoints" / ".tmp" / "3"
    unfinished.mkdir()
    reader = Checkpoints(two_saves, read_only=True)
    assert reader.restore_latest(make_state(0))[1] == 2
    assert unfinished.is_dir()
    Checkpoints(two_saves / "elsewhere", read_only=True)
    assert not (two_saves / "elsewhere").exists()


@pytest.mark.parametrize("name", ["with space", "ünï", "link/"])
def test_odd_and_relative_paths_work(tmp_path, monkeypatch, name):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints(name)
    monkeypatch.chdir("/")
    checkpoints.save(1, make_state(1), None)
    restored, _ = Checkpoints(tmp_path / name).restore_latest(make_state(0))
    assert_identical(restored, make_state(1))


@pytest.mark.parametrize("name", ["a*", "a?", "run [1]"])
def test_path_that_orbax_takes_for_a_pattern_is_refused(tmp_path, name):
    """It saves there, and restores nothing."""
    with pytest.raises(UserError, match=r"its path must be without [*?\[]$"):
        Checkpoints(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_import_does_not_load_orbax():
    module = "jaxattn.training.checkpoints.checkpoint"
    code = f"import sys, {module}; print('orbax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_second_run_in_a_workdir_is_refused(tmp_path):
    with (
        workdir_lock(tmp_path / "run"),
        pytest.raises(UserError, match=f"run is in use by pid {os.getpid()}"),
        workdir_lock(tmp_path / "run"),
    ):
        pass
    with workdir_lock(tmp_path / "run"):
        pass


HOLD_LOCK = """
import sys, time
from jaxattn.training.guards.lock import workdir_lock
with workdir_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_vanishes_with_its_process(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match=f"in use by pid {process.pid}$"),
        workdir_lock(tmp_path),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with workdir_lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_system_without_locks_runs_without(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "fcntl", None)
    with workdir_lock(tmp_path), workdir_lock(tmp_path):
        assert "this system has no such lock" in caplog.text


def test_a_system_that_opens_no_folders_saves(tmp_path, monkeypatch):
    """As Windows does not."""
    opened = os.open

    def refuse(path, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(checkpoint.os, "open", refuse)
    checkpoint._sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        checkpoint._sync(tmp_path / "missing")
