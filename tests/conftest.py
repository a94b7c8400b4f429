import contextlib
import ctypes
import fcntl
import gc
import io
import os
import pathlib
import resource
import shutil
import subprocess
import sys

# Compiling is most of the time here, and this halves it: LLVM optimises little. What
# XLA makes of a program before, its fusions, stays as it is.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
)

import jax
import numpy as np
import pytest

# Eight virtual devices: data parallelism is tested in every run, on any machine.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Many tests train the same small network: each compiles once. The environment variable
# is for the tests that start a process.
CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
# The C++ kernels are built, and used, in tests of them alone: see `library`.
os.environ["JAXATTN_CPU_KERNELS"] = "0"
os.environ["GLIBC_TUNABLES"] = ""  # no program of the tests starts itself anew
# What the user has is not tested by accident.
os.environ["XDG_CACHE_HOME"] = str(CACHE.parent / "user_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

GOLDEN = pathlib.Path(__file__).parent / "golden"


# Tiers ------------------------------------------------------------------------------

# Whole trainings; `two_epochs` is the one that the default tier has.
TRAININGS = {"trained_workdir", "undisturbed"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Puts the tests of whole trainings into tier `full`."""
    for item in items:
        if TRAININGS & set(getattr(item, "fixturenames", ())):
            item.add_marker("full")


# Memory -----------------------------------------------------------------------------

# What a worker may hold from one test to the next, in bytes; and what it may hold over
# that which stays in any case (packages alone may take 0.8 GB).
HELD, OVER = 1_100_000_000, 150_000_000
STAYS = {"bytes": 0}


@pytest.fixture(autouse=True)
def give_memory_back():
    """Returns what was freed to the system, and if that is little, drops programs.

    The allocator keeps what compiling took, and JAX every program: a worker would grow
    to 7 GB. To compile all anew after each test would take longer than the tests.
    """
    yield
    allowed = max(HELD, STAYS["bytes"] + OVER)
    if resident() > allowed:
        trim()
    if resident() > allowed:
        jax.clear_caches()
        gc.collect()
        trim()
        STAYS["bytes"] = resident()


def trim():
    with contextlib.suppress(AttributeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)


def resident():
    """Bytes of this process in memory; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()
    return 0


LARGEST = {}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    LARGEST[node.gateway.id] = getattr(node, "workeroutput", {}).get("peak_kb", 0)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        session.config.workeroutput["peak_kb"] = peak_kb


def pytest_terminal_summary(terminalreporter):
    sizes = [f"{name} {size / 1e6:.2f} GB" for name, size in sorted(LARGEST.items())]
    if sizes:
        terminalreporter.write_line(f"largest memory: {', '.join(sizes)}")


# Fixtures ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Has one worker make a folder, and gives each worker a copy of its own."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of this call of pytest

    def folder(name, make):
        whole = shared / f"{name}_of_all"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                part = shared / f"{name}_part"
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                make(part)
                part.rename(whole)
        return pathlib.Path(
            shutil.copytree(whole, tmp_path_factory.mktemp(name), dirs_exist_ok=True)
        )

    return folder


@pytest.fixture
def golden():
    """Reads `tests/golden/<name>.npz` into a dict of arrays."""

    def read(name):
        with np.load(GOLDEN / f"{name}.npz") as archive:
            return dict(archive)

    return read


@pytest.fixture(scope="session")
def trained_workdir(once):
    """A finished run that tells its five classes apart, for tests that only read it."""
    import smoke

    from jaxattn.training.loop import train_and_evaluate

    def make(folder):
        config = smoke.get_config()
        config.num_epochs = 20
        config.data.image_size = 16  # on 8 pixels a rotation by 5 degrees moves none
        results = train_and_evaluate(config, folder, devices=smoke.one_device())
        assert results["last_test_accuracy"] > 0.5

    return once("trained", make)


@pytest.fixture(scope="session")
def two_epochs(once):
    """The workdir of `smoke` after two epochs, for tests that copy it or only read."""

    def make(folder):
        # In a process of its own: what compiling takes ends with it.
        training = (
            "import sys, conftest, smoke;"
            "from jaxattn.training.loop import train_and_evaluate;"
            "config = smoke.get_config(); config.num_epochs = 2;"
            "train_and_evaluate(config, sys.argv[1], devices=smoke.one_device())"
        )
        subprocess.run(
            [sys.executable, "-c", training, folder],
            cwd=pathlib.Path(__file__).parent,
            check=True,
            capture_output=True,
        )

    return once("two_epochs", make)


@pytest.fixture(scope="session")
def built(once):
    """The folder of what build-cpu-kernels has made, and what it said."""
    from jaxattn.cli import main

    def make(cache):
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setenv("XDG_CACHE_HOME", str(cache))
            patch.delenv("JAXATTN_CPU_KERNELS")
            if main(["build-cpu-kernels"]):
                pytest.skip(err.getvalue())
        (cache / "said").write_text(out.getvalue())

    cache = once("kernels", make)
    return cache / "jaxattn", (cache / "said").read_text()


@pytest.fixture
def library(built, monkeypatch):
    """The path of the oneDNN calls that a program finds which starts now."""
    from jaxattn.ops import cpu_build, cpu_kernels

    monkeypatch.setenv("XDG_CACHE_HOME", str(built[0].parent))
    monkeypatch.delenv("JAXATTN_CPU_KERNELS")
    cpu_kernels._registered_suffix.cache_clear()
    yield cpu_build.compiled_path()
    cpu_kernels._registered_suffix.cache_clear()


@pytest.fixture
def enabled(library, monkeypatch):
    """Enables it beside the eight devices of the tests, of which one computes."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax.clear_caches()
    yield library
    jax.clear_caches()
