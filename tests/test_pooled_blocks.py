"""What blocks that pool do where their authors' code or the map's size is special."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import UserError, from_torch, to_torch
from jaxattn.attention import (
    CPCA,
    MCA,
    FrequencyChannelAttention,
    GatedChannelTransformation,
    GatherExcite,
    GlobalContext,
    SimAM,
    SpatialGroupEnhance,
    StyleRecalibration,
    TripletAttention,
)
from jaxattn.attention.fca import frequency_filters
from jaxattn.attention.mca import channel_taps
from jaxattn.ops.depthwise import depthwise_conv2d
from jaxattn.ops.pool import adaptive_avg_pool
from jaxattn.ops.resize import resize_nearest

KEY = jax.random.key(0)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def init(module, x):
    return jax.jit(module.init)(KEY, x)


def random_like(params):
    """Parameters that start as constants show nothing."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)


# Formulas ---------------------------------------------------------------------------


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def simam(x, _):
    d = (x - x.mean((1, 2), keepdims=True)) ** 2
    return sigmoid(d / (4 * (d.sum((1, 2), keepdims=True) / 11 + 0.1)) + 0.5)


def gct(x, params, mode):
    alpha, gamma, beta = (params[k].reshape(8) for k in ("alpha", "gamma", "beta"))
    if mode == "l2":
        e = alpha * np.sqrt((x**2).sum((1, 2), keepdims=True) + 0.01)
        norm = np.sqrt((e**2).mean(-1, keepdims=True) + 0.01)
    else:
        size = np.abs(x) if mode == "l1" else x
        e = alpha * size.sum((1, 2), keepdims=True)
        norm = np.abs(e).mean(-1, keepdims=True) + 0.01
    return 1 + np.tanh(gamma * e / norm + beta)


def sge(x, params):
    t = x.reshape(2, 3, 4, 4, 2)
    t = (t * t.mean((1, 2), keepdims=True)).sum(-1)
    t = (t - t.mean((1, 2), keepdims=True)) / (
        t.std((1, 2), ddof=1, keepdims=True) + 1e-5
    )
    return sigmoid(t * params["weight"].reshape(4) + params["bias"].reshape(4)).repeat(
        2, -1
    )


def srm(x, params):
    w = params["cfc"]["kernel"].reshape(2, 8)
    z = w[0] * x.mean((1, 2)) + w[1] * x.std((1, 2), ddof=1)
    bn = params["bn"]
    return sigmoid(z / np.sqrt(1 + 1e-5) * bn["scale"] + bn["bias"])[:, None, None]


FORMULAS = {
    "GCT l1": (
        GatedChannelTransformation("l1", 0.01),
        lambda x, params: gct(x, params, "l1"),
    ),
    "GCT l1 after a ReLU": (
        GatedChannelTransformation("l1", 0.01, after_relu=True),
        lambda x, params: gct(x, params, "sum"),
    ),
    "GCT l2": (
        GatedChannelTransformation(epsilon=0.01),
        lambda x, params: gct(x, params, "l2"),
    ),
    "SGE": (SpatialGroupEnhance(4), sge),
    "SRM": (StyleRecalibration(), srm),
    "SimAM": (SimAM(0.1), simam),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_gate_is_the_papers_formula(name):
    module, gate = FORMULAS[name]
    x = normal(2, 3, 4, 8)
    variables = dict(init(module, x))
    variables["params"] = params = random_like(variables.get("params", {}))
    expected = x * gate(x.astype(np.float64), params)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, 1e-5)


# Constant maps ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "module", [MCA(), SimAM(), SpatialGroupEnhance(2), StyleRecalibration()]
)
@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (2, 1, 1, 8)])
def test_gradients_are_finite_on_constant_maps(module, shape):
    """The authors' divide 0 by 0: of a standard deviation, or over no positions."""

    @jax.jit
    def gradient(x):
        variables = module.init(KEY, x)

        def loss(x):
            y, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y + x))

        return jax.grad(loss)(x)

    assert np.isfinite(gradient(jnp.zeros(shape))).all()


# FCA --------------------------------------------------------------------------------


def test_fca_pools_another_map_to_the_size_at_init():
    module = FrequencyChannelAttention(4, "top4")
    x, other = normal(2, 7, 7, 8), normal(2, 9, 12, 8)
    variables = init(module, x)
    pooled = adaptive_avg_pool(jnp.asarray(other), 7)
    filters = frequency_filters("top4", (7, 7), 8)
    z = np.einsum("nhwc,chw->nc", pooled, filters)
    params = variables["params"]
    hidden = np.maximum(z @ params["fc.0"]["kernel"], 0)
    gate = jax.nn.sigmoid(hidden @ params["fc.2"]["kernel"])
    y = jax.jit(module.apply)(variables, other)
    np.testing.assert_allclose(y, other * np.asarray(gate)[:, None, None], 1e-5, 1e-6)


def test_fca_filters_are_written_and_need_not_be_read():
    module, x = FrequencyChannelAttention(4, "low2"), normal(1, 14, 7, 8)
    variables = init(module, x)
    state = to_torch(module, variables)
    filters = state.pop("dct_layer.weight")
    np.testing.assert_array_equal(filters, frequency_filters("low2", (14, 7), 8))
    chex.assert_trees_all_equal(from_torch(module, state, x), variables)
    # Those of another map, and what averaging has left of them, are computed anew.
    state["dct_layer.weight"] = np.zeros((8, 7, 7), np.float32)
    chex.assert_trees_all_equal(from_torch(module, state, x), variables)
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    _, updated = module.apply(
        {**variables, "batch_stats": zeros}, x, train=True, mutable=["batch_stats"]
    )
    chex.assert_trees_all_equal(updated["batch_stats"], variables["batch_stats"])


def test_fca_of_the_first_frequency_is_a_mean():
    filters = frequency_filters("top1", (7, 14), 3)
    np.testing.assert_allclose(filters, np.full((3, 7, 14), 98**-0.5), 1e-6)


# CPCA -------------------------------------------------------------------------------


def test_depthwise_gradients_are_xlas_without_those_of_a_dense_convolution():
    """Which are 8 times as many operations, one for each pair of channels."""
    x, kernel = normal(2, 6, 9, 8), normal(1, 5, 1, 8)

    def output(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=8,
        )

    def gradients(conv):
        loss = lambda *operands: jnp.sum(jnp.sin(conv(*operands)))  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile()

    ours, theirs = gradients(depthwise_conv2d), gradients(output)
    chex.assert_trees_all_close(ours(x, kernel), theirs(x, kernel), rtol=1e-4)
    # A loop's body counts once, ours over the taps.
    flops = [(program.cost_analysis() or {})["flops"] for program in (ours, theirs)]
    assert flops[0] < flops[1] / 2


# GE ---------------------------------------------------------------------------------


def test_learned_gather_refuses_a_map_of_another_size():
    module = GatherExcite("theta")
    variables = jax.eval_shape(module.init, KEY, jnp.zeros((2, 7, 8, 4)))
    match = "GatherExcite: a map of 8x7: must be 7x8 as at init.* takes any size"
    with pytest.raises(UserError, match=match):
        jax.eval_shape(module.apply, variables, jnp.zeros((2, 8, 7, 4)))


@pytest.mark.parametrize("size", [(9, 12), (4, 6)])
def test_nearest_positions_are_pytorchs(size):
    x = normal(1, 3, 4, 2)
    rows, columns = (
        np.arange(n) * m // n for n, m in zip(size, x.shape[1:3], strict=True)
    )
    expected = x[:, rows][:, :, columns]
    actual = jax.jit(lambda x: resize_nearest(x, size))(x)
    np.testing.assert_array_equal(actual, expected)


# Others -----------------------------------------------------------------------------


def test_taps_of_mca_follow_the_rule():
    channels = (2, 3, 16, 32, 64, 128, 256, 512, 1024, 2048)
    assert [channel_taps(C) for C in channels] == [1, 1, 1, 3, 3, 3, 5, 5, 5, 7]


def test_mca_merges_statistics_exactly():
    """A mean of 1000 deviations leaves rows and columns their own."""
    x = normal(2, 5, 6, 16) + 1000
    module = MCA(no_spatial=True)
    variables = init(module, x)

    def gate(name, values):
        params = variables["params"][name]
        w = 0.5 + jax.nn.sigmoid(params["weight"])
        z = w[0] * values.mean(-1) + w[1] * values.std(-1, ddof=1)
        k = params["conv"]["kernel"].reshape(3)
        z = np.pad(z, ((0, 0), (1, 1)))
        return jax.nn.sigmoid(sum(k[i] * z[:, i : i + len(z[0]) - 2] for i in range(3)))

    _, sown = jax.jit(lambda x: module.apply(variables, x, mutable="intermediates"))(x)
    wide = x.astype(np.float64)
    rows = gate("h_cw", wide.reshape(2, 5, 96))
    columns = gate("w_hc", wide.swapaxes(1, 2).reshape(2, 6, 80))
    gates = sown["intermediates"]
    np.testing.assert_allclose(gates["height_gate"][0].reshape(2, 5), rows, 1e-4)
    np.testing.assert_allclose(gates["width_gate"][0].reshape(2, 6), columns, 1e-4)


@pytest.mark.parametrize("module", [GatedChannelTransformation(), GlobalContext(4)])
def test_block_starts_as_the_identity(module):
    x = normal(2, 3, 4, 8)
    y = jax.jit(lambda x: module.apply(module.init(KEY, x), x))(x)
    np.testing.assert_array_equal(y, x)


MISTAKES = {
    "reduction=16 exceeds the 8 channels": [
        CPCA(),
        GlobalContext(),
        GatherExcite("theta_plus"),
        FrequencyChannelAttention(freq_sel_method="top8"),
    ],
    "reduction=0: must be at least 1": [
        CPCA(0),
        GlobalContext(0),
        GatherExcite("theta_plus", reduction=0),
        FrequencyChannelAttention(0, "top8"),
    ],
    "its 16 frequencies must divide the 8 channels": [FrequencyChannelAttention(4)],
    "freq_sel_method='top3': .*top32": [FrequencyChannelAttention(4, "top3")],
    "dct_size=": [FrequencyChannelAttention(4, "top8", (0, 7))],
    "groups=64: must be a divisor of the 8 channels": [SpatialGroupEnhance()],
    "kernel_size=4: must be odd and above 0": [TripletAttention(kernel_size=4)],
    "mode='l3': .*choices: l2, l1": [GatedChannelTransformation("l3")],
    "epsilon=0: must be above 0": [GatedChannelTransformation(epsilon=0)],
    "e_lambda=0: must be above 0": [SimAM(0)],
    "kind='plus': .*choices: theta_minus": [GatherExcite("plus")],
    "extent=3: must be 0 or a power of two": [GatherExcite(extent=3)],
    "pooling_type='max': .*choices: att, avg": [GlobalContext(4, pooling_type="max")],
    r"fusion_types=\(\): must be one or more": [GlobalContext(4, fusion_types=())],
}


@pytest.mark.parametrize("match", MISTAKES)
def test_mistakes_are_one_line(match):
    for module in MISTAKES[match]:
        with pytest.raises(UserError, match=match) as caught:
            jax.eval_shape(module.init, KEY, jnp.zeros((2, 4, 4, 8)))
        assert "\n" not in str(caught.value)
