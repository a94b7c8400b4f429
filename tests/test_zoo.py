"""The zoo's blocks against their authors' values, statistics and gradients.

`JAXATTN_ZOO_GOLDENS` names a folder of more such files, which tier `full` runs.
"""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from zoo_cases import make

from jaxattn import from_torch
from jaxattn.models.torch_layouts import block_names
from jaxattn.models.torch_weights import torch_name

GOLDEN = pathlib.Path(__file__).parent / "golden" / "zoo"
OTHERS = os.environ.get("JAXATTN_ZOO_GOLDENS")

# Of float32 in PyTorch against float64 the worst are 3e-6 and 2e-5.
OUTPUT, GRADIENT = 1e-5, 1e-4


def paths():
    for path in sorted(GOLDEN.glob("*.npz")):
        yield pytest.param(path, id=path.stem)
    for path in sorted(pathlib.Path(OTHERS).glob("*.npz")) if OTHERS else []:
        yield pytest.param(path, id=f"other_{path.stem}", marks=pytest.mark.full)


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def section(arrays, prefix):
    n = len(prefix)
    return {k[n:]: v for k, v in arrays.items() if k.startswith(prefix)}


class Golden:
    """A file's arrays, in the layout of this package."""

    def __init__(self, path):
        with np.load(path) as archive:
            self.arrays = dict(archive)
        self.module = make(path.stem, json.loads(str(self.arrays["config"])))
        self.x = nhwc(self.arrays["input"])
        self.cotangent = nhwc(self.arrays["cotangent"])
        self.state = section(self.arrays, "state/")
        self.variables = self.ours({})
        # Without batch statistics, training is evaluation.
        self.differs = "grad_input_train" in self.arrays

    def ours(self, changed):
        """The variables of the authors' state, where some of it is changed."""
        return from_torch(self.module, {**self.state, **changed}, self.x)

    def output(self, train):
        key = "output_train" if train else "output"
        return nhwc(self.arrays[key])

    def gradients(self, train):
        """By our name in PyTorch, that of the input as `input`."""
        suffix = "_train" if train and self.differs else ""
        given = section(self.arrays, f"grad{suffix}/")
        params = self.ours(given).get("params", {}) if given else {}
        x = nhwc(self.arrays[f"grad_input{suffix}"])
        return {"input": x, **by_name(params)}

    def zero_gradients(self, train):
        """Names of the gradients that are 0 but for rounding."""
        found = json.loads(str(self.arrays["meta"])).get("f32_vs_f64", {})
        names = found.get("zero_grads_train" if train else "zero_grads") or []
        ours = {torch_name(path) for path in traverse_util.flatten_dict(self.variables)}
        return set(block_names(names, ours).values())


def by_name(params):
    leaves = traverse_util.flatten_dict(params)
    return {torch_name(("params", *path)): np.asarray(v) for path, v in leaves.items()}


def computed(golden):
    """For evaluation and training: output, statistics and gradients; one program."""
    module, variables = golden.module, golden.variables

    def run(params, x, train):
        def loss(params, x):
            y, updated = module.apply(
                {**variables, "params": params}, x, train=train, mutable=["batch_stats"]
            )
            return jnp.sum(y * golden.cotangent), (y, updated)

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    both = jax.jit(lambda *args: [run(*args, train) for train in (False, True)])
    return both(variables.get("params", {}), golden.x)


@pytest.mark.parametrize("path", [*paths()])
def test_block_is_its_authors(path):
    golden = Golden(path)
    for train, (gradients, (y, updated)) in enumerate(computed(golden)):
        mode = "training" if train else "evaluation"
        assert_close(y, golden.output(train), OUTPUT, f"output in {mode}")
        check_gradients(golden, gradients, train, mode)
        if train:
            check_statistics(golden, updated)


def check_gradients(golden, gradients, train, mode):
    params, x = gradients
    actual = {"input": x, **by_name(params)}
    expected, zeros = golden.gradients(train), golden.zero_gradients(train)
    if len(expected) > 1:  # of a whole bottleneck in training there is the input's
        assert actual.keys() == expected.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        what = f"gradient of {name} in {mode}"
        if name in zeros:
            assert np.abs(actual[name]).max() <= GRADIENT * largest, what
            continue
        error = np.linalg.norm(actual[name] - gradient)
        assert error <= GRADIENT * np.linalg.norm(gradient), what


def check_statistics(golden, updated):
    after = golden.ours(section(golden.arrays, "state_after_train/"))
    expected = traverse_util.flatten_dict(after.get("batch_stats", {}))
    actual = traverse_util.flatten_dict(updated.get("batch_stats", {}))
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(actual[key], value, OUTPUT, f"{'.'.join(key)} after training")


def assert_close(actual, expected, relative, what):
    """Within `relative` of the largest absolute value."""
    atol = relative * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=what)
