import os
import pathlib

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
jax.config.update("jax_compilation_cache_dir", str(CACHE))

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture
def golden():
    """Reads `tests/golden/<name>.npz` into a dict of arrays."""

    def read(name):
        with np.load(GOLDEN / f"{name}.npz") as archive:
            return dict(archive)

    return read
