"""The blocks against their authors' numbers."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import full_but

from jaxattn import create_model, from_torch, to_torch
from jaxattn.attention import (
    CBAM,
    AttentionResidualBlock,
    AttResBlock,
    ChannelAttention,
    ChannelAttentionBlock,
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
    "channel_attention": ChannelAttention(),
    "attention_residual_block_s1": AttentionResidualBlock(62),
    "attention_residual_block_s2": AttentionResidualBlock(62, 2),
    "channel_attention_block_s2": ChannelAttentionBlock(32, 2),
    "efficient_resnet_bw8": create_model(
        "efficient_resnet", base_width=8, dropout_rate=0.0
    ),
    "enhanced_resnet_bw8": create_model(
        "enhanced_efficient_resnet", base_width=8, dropout_rate=0.0
    ),
    "enhanced_resnet_bw31": create_model("enhanced_efficient_resnet", dropout_rate=0.0),
    "vgg_a_light": create_model("vgg_a_light"),
}

# Whole networks compile for long; CANet_tiny stands for them.
SMALL = [name for name in MODULES if "resnet_" not in name and name != "vgg_a_light"]


def nhwc(x):
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def section(arrays, prefix):
    n = len(prefix)
    return {k[n:]: v for k, v in arrays.items() if k.startswith(prefix)}


@pytest.fixture(params=full_but(MODULES, *SMALL))
def case(request, golden):
    arrays = golden(request.param)
    module, x = MODULES[request.param], nhwc(arrays["input"])
    variables = from_torch(module, section(arrays, "state/"), x)
    return module, variables, x, arrays


def assert_close(actual, expected, relative):
    """Within `relative` of the largest absolute value."""
    atol = relative * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def train_forward(module, variables, x):
    return module.apply(variables, x, train=True, mutable=["batch_stats"])


def test_eval_output_is_the_authors(case):
    module, variables, x, arrays = case
    output = jax.jit(lambda x: module.apply(variables, x, train=False))(x)
    assert_close(output, nhwc(arrays["output"]), 2e-5)


def test_train_output_statistics_and_gradient_are_the_authors(case):
    module, variables, x, arrays = case
    cotangent = nhwc(arrays["cotangent"])

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient_of(x):
        output, updated = train_forward(module, variables, x)
        return jnp.sum(output * cotangent), (output, updated)

    gradient, (output, updated) = gradient_of(x)
    assert_close(output, nhwc(arrays["output_train"]), 2e-5)
    after = to_torch(module, {**variables, **updated})
    for name, expected in section(arrays, "state_after_train/").items():
        assert_close(after[name], expected, 1e-5)
    expected = nhwc(arrays["grad_input"])
    error = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
    # golden_stats: the whole net's own sensitivity to rounding is 7e-5.
    assert error < (3e-4 if "fc2" in variables["params"] else 1e-4)


def test_state_dict_survives_the_round_trip(case):
    module, variables, _, arrays = case
    state = section(arrays, "state/")
    chex.assert_trees_all_equal(to_torch(module, variables), state)


def test_cbam_is_the_papers_formula():
    """W1(relu(W0(.))) of mean and maximum, the sigmoid of their sum; then space."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 32))
    module = CBAM()
    variables = module.init(jax.random.key(1), x)
    params = variables["params"]
    w0, w1 = (
        params["channel_attention"]["shared_mlp"][i]["kernel"][0, 0] for i in "02"
    )
    assert w0.shape == (32, 2)
    mean, largest = x.mean((1, 2)), x.max((1, 2))
    responses = [nn.relu(pooled @ w0) @ w1 for pooled in (mean, largest)]
    gated = x * nn.sigmoid(responses[0] + responses[1])[:, None, None]
    spatial = {"params": params["spatial_attention"]}
    expected = SpatialAttention().apply(spatial, gated)
    assert_close(jax.jit(module.apply)(variables, x), expected, 1e-6)


def test_cbam_refuses_a_bottleneck_without_channels():
    with pytest.raises(ValueError, match="reduction=16 exceeds the 8 channels"):
        CBAM().init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))
