"""Diagnoses: a line for each check, and a FAIL for each injected fault."""

import errno
import importlib.util
import json
import re
import shutil

import jax
import pytest

from jaxattn import doctor
from jaxattn.cli import main
from jaxattn.data import load_data, read_image
from jaxattn.data.preprocess import Frame
from jaxattn.errors import MachineError, describe_fault, explain
from jaxattn.inference.inputs import read_inputs
from jaxattn.training.checkpoints import trained
from jaxattn.training.checkpoints.checkpoint import Checkpoints


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def untrained(monkeypatch):
    """Leaves out the smoke train, which takes seconds."""
    monkeypatch.setattr(doctor, "_smoke_train", lambda: iter(()))


@pytest.mark.usefixtures("untrained")
def test_healthy_machine_passes(capsys, tmp_path):
    code, text, err = run(
        capsys, "doctor", "--workdir", tmp_path, "--data-name", "synthetic"
    )
    assert code == 0, text
    assert err == ""
    for found in (
        "jaxattn 0.",
        "optional packages: orbax-checkpoint,",
        "devices: 8 x cpu (cpu)",
        "CPU kernels (oneDNN's convolutions): not used, as JAXATTN_CPU_KERNELS=0",
        "huge pages:",
        "GiB free",
        "data synthetic: 1,024 training and 256 test images of 10 classes",
        "data synthetic: the first image is read, 32 x 32 x 3; --all-images reads",
    ):
        assert found in text
    assert list(tmp_path.iterdir()) == []
    assert all(
        line.startswith(("ok       ", "warning  ")) for line in text.splitlines()
    )


@pytest.mark.full
def test_training_passes():
    (finding,) = doctor._guarded(doctor._smoke_train)
    assert finding.status == "ok"
    assert "trained 2 steps, saved, restored and reported" in finding.text


def full_disk(monkeypatch):
    def fail(*_):
        raise MachineError("checkpoint 2 could not be written: No space left on device")

    monkeypatch.setattr(Checkpoints, "save", fail)


def dead_accelerator(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda': no device\nmore")

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(jax, "devices", fail)


def little_space(monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def no_grain(monkeypatch):
    find = importlib.util.find_spec
    hide = lambda name: None if name == "grain" else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hide)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("inject", "arguments", "code", "line"),
    [
        (
            dead_accelerator,
            [],
            1,
            "FAIL     JAX_PLATFORMS=cpu: no such device here",
        ),
        (little_space, [], 0, "0.0 GiB free; a run of a large network needs 2 GiB"),
        (no_grain, [], 0, "warning  grain: not installed; off without it: streamed"),
        (None, ["--workdir", "/proc/none"], 1, "FAIL     /proc"),
        (None, ["--data-name", "cifar11"], 1, "FAIL     --data-name=cifar11: unknown"),
        (
            None,
            ["--data-name", "cifar10", "--data-path", "/nowhere"],
            1,
            "FAIL     --data-path=/nowhere: no such file or folder",
        ),
    ],
)
def test_fault_is_a_line(capsys, tmp_path, monkeypatch, inject, arguments, code, line):
    monkeypatch.chdir(tmp_path)
    if inject:
        inject(monkeypatch)
    done, text, err = run(capsys, "doctor", *arguments)
    assert (done, err) == (code, "")
    assert line in text
    assert "huge pages:" in text or "GiB free" in text  # the other checks go on


@pytest.mark.full
def test_training_that_fails_is_a_line(monkeypatch):
    full_disk(monkeypatch)
    (finding,) = doctor._guarded(doctor._smoke_train)
    assert finding.status == "FAIL"
    assert "No space left on device; nothing is saved" in finding.text


def test_data_path_needs_a_name(capsys):
    code, _, err = run(capsys, "doctor", "--data-path", "x")
    assert code == 2
    assert err == "jaxattn: --data-path='x': must be given with --data-name\n"


# Checkpoints


@pytest.fixture
def workdir(two_epochs, tmp_path):
    shutil.copytree(two_epochs, tmp_path, dirs_exist_ok=True)
    return tmp_path


def largest_file(workdir, step):
    files = (workdir / "checkpoints" / str(step)).rglob("*")
    return max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_intact_checkpoints_are_listed(capsys, workdir):
    (workdir / "checkpoints" / "notes").mkdir()
    before = sorted(workdir.rglob("*"))
    code, text, err = run(capsys, "verify", "--workdir", workdir)
    assert code == 0, err
    first, second, strangers, used = text.splitlines()
    assert first.startswith("ok       step 6: intact, val_accuracy 0.")
    assert second.startswith("ok       step 12: intact, val_accuracy 0.")
    assert strangers == "warning  not checkpoints, ignored: notes"
    assert used == "ok       step 12 is the newest intact one"
    assert sorted(workdir.rglob("*")) == before


def test_damage_is_named_with_what_is_used_instead(capsys, workdir):
    file = largest_file(workdir, 12)
    flip_byte(file)
    code, text, _ = run(capsys, "verify", "--workdir", workdir)
    assert code == 1
    name = file.relative_to(workdir / "checkpoints" / "12").as_posix()
    assert f"FAIL     step 12: {name} has changed" in text
    assert "ok       step 6 is the newest intact one" in text


def test_no_intact_checkpoint_says_what_to_do(capsys, workdir):
    for step in (6, 12):
        largest_file(workdir, step).unlink()
    code, text, _ = run(capsys, "verify", "--workdir", workdir)
    assert code == 1
    assert text.count("is missing") == 2
    assert "FAIL     no checkpoint is intact: put a copy back" in text


def test_checkpoint_of_another_network_is_named(capsys, workdir):
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["base_width"] = 4
    (workdir / "config.json").write_text(json.dumps(config))
    code, text, _ = run(capsys, "verify", "--workdir", workdir)
    assert code == 1
    assert text.count("is of another model or optimizer: ") == 2


def test_lost_config_is_named_and_files_are_checked(capsys, workdir):
    (workdir / "config.json").unlink()
    code, text, _ = run(capsys, "verify", "--workdir", workdir)
    assert code == 1
    assert "holds no run (no config.json); files are checked alone" in text
    assert text.count(": intact") == 2


def test_folder_without_checkpoints_is_a_mistake(capsys, tmp_path):
    code, text, err = run(capsys, "verify", "--workdir", tmp_path)
    assert (code, text) == (2, "")
    assert err == f"jaxattn: workdir {tmp_path}: holds no run (no checkpoint)\n"


# Faults of the machine


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(28, "No space left on device", "/a/b"),
            "/a/b: No space .*; free some",
        ),
        (PermissionError(13, "Permission denied", "/a"), "/a: Perm.*; make it access"),
        (OSError("plain"), "plain"),
        (MemoryError(), "out of memory: end other programs"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\ndetails"),
            r"out of memory \(RESOURCE_EXHAUSTED: Out of memory\): end other",
        ),
        (
            jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: reset by peer"),
            "another process of the run was lost",
        ),
        (
            jax.errors.JaxRuntimeError("INTERNAL: CUDA_ERROR_ECC_UNCORRECTABLE"),
            "a device or .* was lost",
        ),
    ],
)
def test_fault_of_the_machine_is_one_line(error, message):
    described = describe_fault(error)
    assert described is not None
    assert re.search(message, described)
    assert "\n" not in described


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError])
def test_a_missing_device_is_told_of_whatever_meets_it(kind, monkeypatch):
    """Of a platform whose plugin is missing JAX says nothing but AssertionError."""

    def fail():
        raise kind

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    line = "JAX_PLATFORMS=cuda: no such device here; JAX_PLATFORMS=cpu does without"
    assert explain(kind()) == (line, 1)
    assert explain(ValueError("else")) is None


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(errno.EMFILE, "Too many open files"), AssertionError()],
)
def test_no_file_is_blamed_for_the_machine(error, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise error

    if isinstance(error, AssertionError):
        monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setattr(trained, "make_task", fail)
    monkeypatch.setattr("PIL.Image.open", fail)
    monkeypatch.setattr("numpy.load", fail)
    for name in ("a.npz", "a.png", "a.csv"):
        (tmp_path / name).write_bytes(b"0")
    config = {"model": {}, "normalize": {}, "dataset": {"class_names": []}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for read in (
        lambda: trained.load_trained(tmp_path),
        lambda: read_image(tmp_path / "a.png"),
        lambda: read_inputs([tmp_path / "a.npz"], Frame((8, 8, 3))),
        lambda: load_data("cifar10", path=str(tmp_path / "a.npz")),
    ):
        with pytest.raises(MachineError, match=r"memory|Too many|no such device"):
            read()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shape"),
        jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Executable expected shape"),
        RuntimeError("dictionary changed size during iteration"),
    ],
)
def test_bug_keeps_its_traceback(error):
    assert describe_fault(error) is None
