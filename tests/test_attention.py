"""The blocks against their authors' numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import create_model, from_torch, to_torch
from jaxattn.attention import (
    AttResBlock,
    CompetitiveAttention,
    MultiKernelECA,
    SpatialAttention,
    SpatialGate,
)

MODULES = {
    "att_res_block_s1": AttResBlock(16, 1, spatial_kernel_size=7),
    "att_res_block_s2": AttResBlock(32, 2, spatial_kernel_size=5),
    "se_layer": MultiKernelECA(),
    "sa_layer": SpatialGate(7),
    "spatial_attention": SpatialAttention(),
    "compet_att": CompetitiveAttention(8),
    "canet_tiny": create_model("canet_tiny"),
}


def nhwc(x):
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def section(arrays, prefix):
    n = len(prefix)
    return {k[n:]: v for k, v in arrays.items() if k.startswith(prefix)}


@pytest.fixture(params=MODULES)
def case(request, golden):
    arrays = golden(request.param)
    module, x = MODULES[request.param], nhwc(arrays["input"])
    variables = from_torch(module, section(arrays, "state/"), x)
    return module, variables, x, arrays


@pytest.fixture(params=["eager", "jit"])
def mode(request):
    return jax.jit if request.param == "jit" else lambda f: f


def assert_close(actual, expected, relative):
    """Within `relative` of the largest absolute value."""
    atol = relative * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def train_forward(module, variables, x):
    return module.apply(variables, x, train=True, mutable=["batch_stats"])


def test_eval_output_is_the_authors(case, mode):
    module, variables, x, arrays = case
    output = mode(lambda x: module.apply(variables, x, train=False))(x)
    assert_close(output, nhwc(arrays["output"]), 2e-5)


def test_train_output_and_statistics_are_the_authors(case, mode):
    module, variables, x, arrays = case
    output, updated = mode(lambda x: train_forward(module, variables, x))(x)
    assert_close(output, nhwc(arrays["output_train"]), 2e-5)
    after = to_torch(module, {**variables, **updated})
    for name, expected in section(arrays, "state_after_train/").items():
        assert_close(after[name], expected, 1e-5)


def test_input_gradient_is_the_authors(case, mode):
    module, variables, x, arrays = case
    cotangent = nhwc(arrays["cotangent"])

    def loss(x):
        return jnp.sum(train_forward(module, variables, x)[0] * cotangent)

    gradient, expected = mode(jax.grad(loss))(x), nhwc(arrays["grad_input"])
    error = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
    # golden_stats: the whole net's own sensitivity to rounding is 7e-5.
    assert error < (3e-4 if "fc2" in variables["params"] else 1e-4)


def test_state_dict_survives_the_round_trip(case):
    module, variables, _, arrays = case
    state = section(arrays, "state/")
    chex.assert_trees_all_equal(to_torch(module, variables), state)
