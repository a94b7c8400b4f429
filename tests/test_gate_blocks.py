"""What blocks that gate do where their authors' code or the channels are special."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import UserError, from_torch, to_torch
from jaxattn.attention import (
    BAM,
    CBAM,
    ECA,
    ELA,
    SE,
    CoordinateAttention,
    EfficientMultiscaleAttention,
    ShuffleAttention,
)
from jaxattn.attention.eca import adaptive_kernel_size
from jaxattn.ops.group_norm import moments

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("module", "channels", "message"),
    [
        (SE(), 8, "SE: reduction=16 exceeds the 8 channels"),
        (SE(hidden=0), 8, "hidden=0: must be at least 1"),
        (ECA((3, 5, 5, 7)), 8, "kernel_size=(3, 5, 5, 7): must be an odd number above"),
        (ECA(4), 8, "kernel_size=4: must be an odd number above 0"),
        (ECA(19, padding="circular"), 8, "kernel_size=19: must be at most 2 * 8 + 1"),
        (ECA(padding="same"), 8, "padding='same': choices: zero, circular"),
        (CBAM(), 8, "CBAM: reduction=16 exceeds the 8 channels"),
        (CBAM(pool_types=("mean",)), 32, "pool_types='mean': choices: avg, max, lp"),
        (CBAM(pool_types=()), 32, "pool_types=(): must be one or more"),
        (BAM(), 8, "BAM: reduction=16 exceeds the 8 channels"),
        (CoordinateAttention(0), 8, "reduction=0: must be at least 1"),
        (ELA(), 24, "ELA: norm_groups=16: must be a divisor of the 24 channels"),
        (ELA(conv_groups=3), 32, "ELA: conv_groups=3: must be a divisor of the 32"),
        (ELA(4), 32, "kernel_size=4: must be odd and above 0"),
        (EfficientMultiscaleAttention(), 48, "groups=32: must be a divisor of the 48"),
        (
            ShuffleAttention(),
            64,
            "ShuffleAttention: the 64 channels must be a multiple of 128, two for each"
            " of groups=64",
        ),
    ],
)
def test_block_refuses(module, channels, message):
    x = jax.ShapeDtypeStruct((2, 4, 4, channels), jnp.float32)
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        jax.eval_shape(module.init, KEY, x)


def test_kernel_follows_the_papers_rule():
    taps = {3: (16, 32, 64), 5: (128, 256, 512, 1024), 7: (2048,)}
    for size, channels in taps.items():
        assert {adaptive_kernel_size(C) for C in channels} == {size}


def test_bam_pools_the_whole_map():
    """The authors' window is as wide as the map is high: the rest does not count."""
    x = jax.random.normal(KEY, (2, 3, 5, 32))
    variables = jax.jit(BAM().init)(KEY, x)
    wide, high = {}, {}
    for square in (False, True):
        apply = jax.jit(BAM(square_window=square).apply)
        wide[square], high[square] = apply(variables, x), apply(variables, x[:, :, :3])
    assert np.abs(wide[False] - wide[True]).max() > 1e-3
    np.testing.assert_array_equal(high[False], high[True])


def test_cbam_adds_the_responses_to_all_ways_to_pool():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 32)).astype(np.float32)
    module = CBAM(4, biases=True, pool_types=("avg", "lp", "lse"), no_spatial=True)
    variables = jax.jit(module.init)(KEY, x)
    first, last = (
        variables["params"]["channel_attention"]["shared_mlp"][i] for i in "02"
    )

    def respond(pooled):
        hidden = np.maximum(pooled @ first["kernel"][0, 0] + first["bias"][None], 0)
        return hidden @ last["kernel"][0, 0] + last["bias"][None]

    pools = [x.mean((1, 2)), np.sqrt((x**2).sum((1, 2))), np.log(np.exp(x).sum((1, 2)))]
    gate = jax.nn.sigmoid(sum(map(respond, pools)))
    expected = x * gate[:, None, None]
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, rtol=1e-4)


def test_moments_keep_their_digits_far_from_zero():
    x = np.random.default_rng(0).normal(1000, 1, (4, 256)).astype(np.float32)
    mean, var = jax.jit(lambda x: moments(x, (1,)))(x)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var(1, keepdims=True), rtol=1e-5)


def test_other_codes_names_load_as_ours():
    """A 1x1 convolution as a linear layer, too; a name that nothing has stays."""
    x = jax.ShapeDtypeStruct((1, 4, 4, 32), jnp.float32)
    module = SE(4)
    state = to_torch(
        module, jax.tree.map(np.asarray, module.init(KEY, jnp.zeros(x.shape)))
    )
    theirs = {
        "fc1.weight": state["fc.0.weight"][:, :, None, None],
        "fc2.weight": state["fc.2.weight"][:, :, None, None],
    }
    loaded = to_torch(module, from_torch(module, theirs, x))
    for name, array in state.items():
        np.testing.assert_array_equal(loaded[name], array)
    with pytest.raises(ValueError, match=r"missing: fc\.0\.weight; unexpected: fc3\.w"):
        from_torch(module, {"fc2.weight": theirs["fc2.weight"], "fc3.weight": 1}, x)
