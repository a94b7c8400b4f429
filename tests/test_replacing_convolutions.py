"""Blocks that take the place of a convolution, and those that start as the identity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.attention import (
    ChannelSelfAttention,
    CondConv,
    NonLocal,
    PositionAttention,
    ReconstructionConv,
    SelectiveKernel,
    SelfCalibratedConv,
    SplitAttention,
    StripPooling,
)

CONVOLUTIONS = [
    CondConv,
    ReconstructionConv,
    SelectiveKernel,
    SelfCalibratedConv,
    SplitAttention,
]
X = jax.random.normal(jax.random.key(0), (2, 5, 7, 16))


def started(module, **kwargs):
    """The output for X, and variables with what is sown, of fresh parameters."""
    start = functools.partial(module.init_with_output, mutable=True, **kwargs)
    return jax.jit(start)(jax.random.key(1), X)


@pytest.mark.parametrize("block", CONVOLUTIONS)
def test_shape_is_that_of_the_convolution_replaced(block):
    """3x3 with padding 1, at both strides, to fewer and to more channels."""
    for features, stride in ((8, 1), (48, 2)):
        module = block(features, stride=stride)
        y = jax.eval_shape(module.init_with_output, jax.random.key(0), X)[0]
        assert y.shape == (2, -(-5 // stride), -(-7 // stride), features)


@pytest.mark.parametrize("block", [CondConv, SelectiveKernel, SplitAttention])
def test_other_kernels_keep_the_size_of_the_map(block):
    module = block(kernel_size=5, groups=2)
    y = jax.eval_shape(module.init_with_output, jax.random.key(0), X)[0]
    assert y.shape == X.shape


@pytest.mark.parametrize(
    ("block", "axes"),
    [(SelectiveKernel, (0,)), (SplitAttention, (0,)), (ReconstructionConv, (0, -1))],
)
def test_branches_share_one(block, axes):
    sown = started(block())[1]["intermediates"]
    sown = sown.get("cru", sown)
    gates = jnp.stack([sown[f"branch_{i}_gate"][0] for i in range(2)])
    np.testing.assert_allclose(jnp.sum(gates, axes), 1, rtol=1e-6)


def test_split_weights_are_by_group_then_by_split():
    """In the last layer's channels; the map's are by split, then by group."""
    _, variables = started(SplitAttention(groups=2), capture_intermediates=True)
    sown = variables["intermediates"]
    logits = sown["fc2"]["__call__"][0].reshape(2, 2, 2, 8)
    for group, channels in ((0, slice(0, 8)), (1, slice(8, 16))):
        expected = jax.nn.softmax(logits[:, group], 1)
        for split in range(2):
            gate = sown[f"branch_{split}_gate"][0][:, 0, 0, channels]
            np.testing.assert_allclose(gate, expected[:, split], rtol=1e-5)


@pytest.mark.parametrize(
    "module",
    [NonLocal(), NonLocal(norm=False), PositionAttention(), ChannelSelfAttention()],
)
def test_block_starts_as_the_identity(module):
    np.testing.assert_array_equal(started(module)[0], X)


def test_strip_pooling_multiplies_by_its_gate():
    y, variables = started(StripPooling())
    apply = functools.partial(StripPooling().apply, method="gate")
    gate = jax.jit(lambda x: apply(variables, x, 16))(X)
    np.testing.assert_allclose(y, X * gate, rtol=1e-5)


def test_a_kernel_is_mixed_for_every_example():
    """One expert alone is a convolution by it, whatever the other experts are."""
    module = CondConv(8, num_experts=2)
    variables = started(module)[1]
    # A routing of 1 to the first expert and 0 to the second.
    params = {
        "routing_fn": {"kernel": jnp.zeros((16, 2)), "bias": jnp.array([50.0, -500])},
        "conv": variables["params"]["conv"],
    }
    kernel = params["conv"]["kernel"][:, 0].reshape(8, 16, 3, 3)
    expected = jax.lax.conv(X.transpose(0, 3, 1, 2), kernel, (1, 1), "SAME")
    y = jax.jit(module.apply)({"params": params}, X)
    np.testing.assert_allclose(y, expected.transpose(0, 2, 3, 1), rtol=0, atol=1e-5)
