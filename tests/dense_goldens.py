"""Where the arrays of detection and segmentation are, and their layout here."""

import json
import os
import pathlib

import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden" / "dense"
OTHERS = os.environ.get("JAXATTN_DENSE_GOLDENS")


def read(name):
    """The arrays of `<name>.npz`, of this repository or of the folder of the others."""
    path = GOLDEN / f"{name}.npz"
    if not path.exists():
        if OTHERS is None:
            pytest.skip("needs the folder JAXATTN_DENSE_GOLDENS")
        path = pathlib.Path(OTHERS) / f"{name}.npz"
    with np.load(path) as archive:
        return dict(archive)


def config_of(arrays):
    return json.loads(str(arrays["config"]))


def section(arrays, prefix):
    """Those that begin with a prefix, by the rest of their names."""
    return {
        k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)
    }


def nhwc(x):
    return np.moveaxis(x, 1, -1)


def assert_close(actual, expected, relative, what=""):
    """Within `relative` of the largest absolute value, or of 1 if that is less."""
    atol = relative * max(1, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=what)
