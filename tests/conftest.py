import pathlib

import jax
import numpy as np
import pytest

# Eight virtual devices: data parallelism is tested in every run, on any machine.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture
def golden():
    """Reads `tests/golden/<name>.npz` into a dict of arrays."""

    def read(name):
        with np.load(GOLDEN / f"{name}.npz") as archive:
            return dict(archive)

    return read
