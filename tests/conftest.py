import os
import pathlib

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
# What the user has built is not tested by accident.
os.environ["GLIBC_TUNABLES"] = ""  # no program of the tests starts itself anew
os.environ["XDG_CACHE_HOME"] = str(CACHE.parent / "user_cache")
jax.config.update("jax_compilation_cache_dir", str(CACHE))

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture
def golden():
    """Reads `tests/golden/<name>.npz` into a dict of arrays."""

    def read(name):
        with np.load(GOLDEN / f"{name}.npz") as archive:
            return dict(archive)

    return read


@pytest.fixture(scope="session")
def trained_workdir(tmp_path_factory):
    """A finished run that tells its five classes apart, for tests that only read it."""
    import smoke

    from jaxattn.training.loop import train_and_evaluate

    folder = tmp_path_factory.mktemp("trained")
    config = smoke.get_config()
    config.num_epochs = 20
    config.data.image_size = 16  # on 8 pixels a rotation by 5 degrees moves none
    results = train_and_evaluate(config, folder, devices=smoke.one_device())
    assert results["last_test_accuracy"] > 0.5
    return folder
