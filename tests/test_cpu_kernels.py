"""The C++ library is built unasked where it can be, and nothing ends a start."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smoke

from jaxattn import doctor
from jaxattn.errors import UserError
from jaxattn.inference import Predictor
from jaxattn.ops import cpu_build, cpu_kernels
from jaxattn.ops.conv import conv2d
from jaxattn.training.loop import train_and_evaluate
from jaxattn.training.resume import convolutions_by_step
from jaxattn.training.run import build

FAILS = "echo 'x.cc:1: error: a reason' >&2; exit 1"


class Machine:
    """One with a compiler of ours, oneDNN, and an empty cache folder."""

    def __init__(self, folder, monkeypatch):
        self.cache = folder / "cache" / "jaxattn"
        self.compiler = folder / "compiler"
        self._calls = folder / "calls"
        self._environment = monkeypatch
        self.patch = monkeypatch.setattr
        header = folder / "include" / "oneapi" / "dnnl" / "dnnl.hpp"
        header.parent.mkdir(parents=True)
        header.touch()
        monkeypatch.setattr(cpu_build, "_find_onednn", lambda: header)
        monkeypatch.setattr(jax, "device_count", lambda: 1)
        monkeypatch.setattr(cpu_kernels, "is_built_unasked", lambda: True)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setenv("CXX", str(self.compiler))
        self.set("")
        self.compile_by(FAILS)

    def set(self, value):
        self._environment.setenv("JAXATTN_CPU_KERNELS", value)

    def compile_by(self, script):
        """A compiler that logs where it works; `$made` is what it should make."""
        self.compiler.write_text(
            f"#!{shutil.which('bash')}\n"
            f'made="${{@: -1}}"\ndirname "$made" >> {self._calls}\n{script}\n'
        )
        self.compiler.chmod(0o755)

    @property
    def tries(self):
        """How often building was tried, each time in a folder of its own."""
        folders = self._calls.read_text().split() if self._calls.exists() else []
        return len(set(folders))

    def start(self):
        """Begins as a new process would; returns the lines it says."""
        cpu_build._told.clear()
        cpu_kernels._registered_suffix.cache_clear()
        cpu_kernels.prepare()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    yield Machine(tmp_path, monkeypatch)
    cpu_build._told.clear()
    cpu_kernels._registered_suffix.cache_clear()


@pytest.fixture
def said(capsys):
    return lambda: capsys.readouterr().err.splitlines()


BUILDING = "building the CPU kernels, once: about 10 seconds"
FAILED = (
    "CPU kernels not built: the C++ compiler: x.cc:1: error: a reason (jaxattn"
    " build-cpu-kernels tries again); XLA's slower operations instead"
)


def test_first_start_builds_and_the_second_uses(machine, built, said):
    (library,) = built[0].glob("*.so")
    machine.compile_by(f'cp {library} "$made"')
    machine.start()
    first, second = said()
    assert first == BUILDING
    assert second.startswith("CPU kernels built in ")
    assert cpu_kernels.is_enabled()
    machine.start()
    assert said() == []
    assert machine.tries == 1


def test_failure_is_told_and_remembered(machine, said):
    machine.start()
    assert said() == [BUILDING, FAILED]
    assert not cpu_kernels.is_enabled()
    cpu_kernels.prepare()  # as a second run of this process
    assert said() == []
    machine.start()
    assert said() == [FAILED]
    assert machine.tries == 1
    assert [path.suffix for path in sorted(machine.cache.iterdir())] == [
        ".failed",
        ".lock",
    ]


def test_full_disk_is_told_and_not_remembered(machine, said):
    machine.compile_by("echo 'a.s: No space left on device' >&2; exit 1")
    machine.start()
    assert "jaxattn: No space left on device; free some space there;" in said()[-1]
    machine.start()
    assert machine.tries == 2


def test_another_compiler_is_tried(machine, said):
    machine.start()
    machine.compile_by(f"{FAILS} # newer")
    machine.start()
    assert said() == [BUILDING, FAILED] * 2
    assert machine.tries == 2


def test_failure_is_tried_again_a_day_later(machine):
    machine.start()
    (record,) = machine.cache.glob("*.failed")
    yesterday = time.time() - cpu_build.REMEMBERED_S - 1
    os.utime(record, (yesterday, yesterday))
    machine.start()
    assert machine.tries == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tools": 1}'])
def test_damaged_memory_of_a_failure_is_none(machine, content):
    machine.start()
    (record,) = machine.cache.glob("*.failed")
    record.write_text(content)
    machine.start()
    assert machine.tries == 2


def test_command_tries_what_failed_and_forgets_it(machine, built):
    machine.start()
    (library,) = built[0].glob("*.so")
    before = machine.compiler.stat()
    machine.compile_by(f'cp {library} "$made"')
    os.utime(machine.compiler, ns=(before.st_atime_ns, before.st_mtime_ns))
    cpu_kernels.build()
    assert not list(machine.cache.glob("*.failed"))
    assert cpu_kernels.is_enabled()


def no_compiler(machine):
    machine.compiler.unlink()


def no_onednn(machine):
    machine.patch(cpu_build, "_find_onednn", lambda: None)


def no_folder(machine):
    machine.cache.parent.touch()


def full_disk(machine):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "F")

    machine.patch(cpu_build.tempfile, "TemporaryDirectory", fail)


@pytest.mark.parametrize(
    ("break_it", "line"),
    [
        (no_compiler, "no C++ compiler: install g++ 10 or newer, or name one in"),
        (no_onednn, "no oneDNN: pip install onednn-devel-cpu-gomp, or install"),
        (no_folder, "cannot be written: XDG_CACHE_HOME names another folder"),
        (full_disk, "F: No space left on device; free some space there"),
    ],
)
def test_what_is_missing_is_one_line(break_it, line, machine, said):
    break_it(machine)
    machine.start()
    *before, last = said()
    assert before in ([], [BUILDING])
    assert line in last
    assert last.startswith("CPU kernels not built: ")
    assert machine.tries == 0
    assert not cpu_kernels.is_enabled()


def test_compiler_that_hangs_is_ended(machine, monkeypatch, said):
    monkeypatch.setattr(cpu_build, "_COMPILER_TIMEOUT_S", 0.2)
    machine.compile_by("exec sleep 60")
    machine.start()
    assert "the C++ compiler: not done after" in said()[-1]


@pytest.mark.parametrize("made", [b"", b"no library"])
def test_library_that_cannot_be_loaded_is_not_kept(machine, made, said):
    machine.compile_by(f"printf '{made.decode()}' > \"$made\"")
    machine.start()
    assert "the library of the CPU kernels cannot be loaded" in said()[-1]
    assert not list(machine.cache.glob("*.so"))


def test_library_that_cannot_be_loaded_any_more_is_built_again(machine, built):
    """Its oneDNN was in an environment that has been removed."""
    (library,) = built[0].glob("*.so")
    machine.cache.mkdir(parents=True)
    cpu_build.compiled_path().write_bytes(b"no library")
    machine.start()
    assert not cpu_kernels.is_enabled()
    machine.compile_by(f'cp {library} "$made"')
    machine.start()
    assert cpu_kernels.is_enabled()


def test_what_a_killed_process_has_left_goes(machine, built):
    (library,) = built[0].glob("*.so")
    code = "from jaxattn.ops import cpu_kernels as k; k.build()"
    machine.compile_by("exec sleep 60")
    process = subprocess.Popen([sys.executable, "-c", code])
    while not list(machine.cache.glob("cpu-kernels-building-*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    machine.compile_by(f'cp {library} "$made"')
    machine.start()
    assert cpu_kernels.is_enabled()
    assert {path.suffix for path in machine.cache.iterdir()} == {".so", ".lock"}


def test_two_processes_build_once(machine, built, said):
    (library,) = built[0].glob("*.so")
    machine.cache.mkdir(parents=True)
    lock = (machine.cache / "cpu-kernels.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def other():
        time.sleep(0.3)
        shutil.copy(library, cpu_build.compiled_path())
        lock.close()

    thread = threading.Thread(target=other)
    thread.start()
    machine.start()
    thread.join()
    assert said() == ["waiting for another process, which builds the CPU kernels"]
    assert cpu_kernels.is_enabled()
    assert machine.tries == 0


def test_process_that_hangs_is_not_waited_for_forever(machine, monkeypatch, said):
    monkeypatch.setattr(cpu_build, "_WAIT_FOR_OTHERS_S", 0.2)
    machine.cache.mkdir(parents=True)
    with (machine.cache / "cpu-kernels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        machine.start()
    assert said()[1:] == [BUILDING, FAILED]


def refused(machine):
    machine.set("0")


def eight_devices(machine):
    machine.patch(jax, "device_count", lambda: 8)


def on_gpu(machine):
    machine.patch(jax, "default_backend", lambda: "gpu")


def other_system(machine):
    machine.patch(cpu_kernels, "is_built_unasked", lambda: False)


@pytest.mark.parametrize("how", [refused, eight_devices, on_gpu, other_system])
def test_where_it_is_not_wanted_nothing_is_said(how, machine, said):
    how(machine)
    machine.start()
    assert (said(), machine.tries, machine.cache.exists()) == ([], 0, False)


def test_demanded_it_is_built_and_a_failure_is_an_error(machine, built):
    machine.start()  # which fails, and is not what counts
    machine.set("1")
    with pytest.raises(UserError, match=r"JAXATTN_CPU_KERNELS=1: .* error: a reason"):
        machine.start()
    (library,) = built[0].glob("*.so")
    machine.compile_by(f'cp {library} "$made"')
    machine.start()
    assert cpu_kernels.is_enabled()


# Doors ----------------------------------------------------------------------


def test_block_starts_no_compiler(machine):
    conv2d(jnp.ones((1, 2, 2, 3)), jnp.ones((1, 1, 3, 3)))
    assert machine.tries == 0


def test_training_prepares_after_its_config_is_checked(machine):
    config = smoke.get_config()
    config.num_epochs = 0
    with pytest.raises(UserError):
        build(config, devices=smoke.one_device())
    assert machine.tries == 0
    build(smoke.get_config(), devices=smoke.one_device())
    assert machine.tries == 1


def test_predicting_prepares(machine):
    import jaxattn.training

    trained = jaxattn.training.load_trained(weights="canet_tiny-cifar10")
    Predictor(trained, devices=smoke.one_device())
    assert machine.tries == 1


def test_doctor_tells_what_fails(machine):
    (finding,) = doctor._kernels()
    assert finding.status == doctor.WARNING
    assert "error: a reason (jaxattn build-cpu-kernels tries again)" in finding.text
    machine.set("1")
    (finding,) = doctor._guarded(doctor._kernels)
    assert finding.status == doctor.FAIL
    assert "JAXATTN_CPU_KERNELS=1: the C++ compiler" in finding.text


def test_doctor_tells_that_it_is_used(machine, built):
    (library,) = built[0].glob("*.so")
    machine.compile_by(f'cp {library} "$made"')
    (finding,) = doctor._kernels()
    assert (finding.status, finding.text.split(": ")[1]) == ("ok", "built and used")


# Resuming ----------------------------------------------------------------------


class Run:
    total_steps = 40


@pytest.mark.parametrize(
    ("saved", "step", "now", "expected"),
    [
        ({}, 0, "oneDNN", {"0": "oneDNN"}),
        ({}, 20, "XLA", {"0": "XLA"}),
        ({}, 20, "oneDNN", {"0": "XLA", "20": "oneDNN"}),
        ({"convolutions": "oneDNN"}, 20, "oneDNN", {"0": "oneDNN"}),
        ({"convolutions": "oneDNN"}, 20, "XLA", {"0": "oneDNN", "20": "XLA"}),
        # A run that has finished is only reported again.
        ({"convolutions": "oneDNN"}, 40, "XLA", {"0": "oneDNN"}),
        (
            {"convolutions_by_step": {"0": "XLA", "20": "oneDNN"}},
            30,
            "oneDNN",
            {"0": "XLA", "20": "oneDNN"},
        ),
        # It goes on from before the change.
        (
            {"convolutions_by_step": {"0": "XLA", "20": "oneDNN"}},
            10,
            "XLA",
            {"0": "XLA"},
        ),
    ],
)
def test_changes_of_convolutions_are_kept(
    saved, step, now, expected, tmp_path, monkeypatch
):
    (tmp_path / "config.json").write_text(json.dumps({"versions": saved}))
    monkeypatch.setattr(cpu_kernels, "name_of_convolutions", lambda: now)
    assert convolutions_by_step(Run, tmp_path, step) == expected


@pytest.mark.full
def test_resumed_run_tells_of_other_convolutions(
    two_epochs, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(two_epochs, workdir)
    config = smoke.get_config()
    config.num_epochs = 3
    monkeypatch.setattr(cpu_kernels, "name_of_convolutions", lambda: "oneDNN")
    train_and_evaluate(config, workdir, devices=smoke.one_device())
    step = str(2 * results_steps(workdir))
    by_step = {"0": "XLA", step: "oneDNN"}
    assert "convolutions: XLA -> oneDNN, which round" in capsys.readouterr().err
    for file in ("config.json", "results.json"):
        content = json.loads((workdir / file).read_text())
        assert content["versions"]["convolutions_by_step"] == by_step
    report = (workdir / "report.txt").read_text()
    assert f"convolutions: XLA's from step 0, oneDNN's from step {step}" in report


def results_steps(workdir):
    """Steps of an epoch."""
    with contextlib.closing((workdir / "metrics.jsonl").open()) as file:
        rows = [json.loads(line) for line in file]
    return int(np.min([row["step"] for row in rows if "epoch/epoch" in row]))
