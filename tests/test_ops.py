import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxattn.ops import conv
from jaxattn.ops.activations import relu, sigmoid
from jaxattn.ops.conv import conv2d
from jaxattn.ops.group_norm import GroupNorm
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.pool import adaptive_avg_pool, max_along, max_pool
from jaxattn.ops.resize import resize_bilinear


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def lax_conv(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@pytest.fixture(params=[True, False])
def has_avx512(request, monkeypatch):
    """Of which the choice of a formulation depends."""
    monkeypatch.setattr(conv, "_has_avx512", lambda: request.param)
    return request.param


CONVOLUTIONS = [
    # Size, stride, padding; input and output channels, which a choice depends on where
    # the gradient is the kernel's; heights, odd and even, 2 where one is of its own.
    *[
        (*window, *channels, height)
        for window in [(3, 2, 1), (5, 2, 2), (3, 1, 1), (5, 1, 2)]
        for channels, height in [((5, 6), 8), ((5, 20), 9), ((20, 6), 8)]
    ],
    (3, 1, 1, 5, 6, 2),
    (3, 2, 1, 20, 6, 2),
    (5, 2, 2, 5, 6, 3),
    (7, 3, 3, 5, 6, 4),
    (2, 2, 0, 5, 6, 8),
    (2, 2, 0, 5, 6, 9),
    (1, 1, 0, 5, 6, 8),
    (1, 2, 0, 5, 6, 9),
]


@pytest.mark.usefixtures("has_avx512")
@pytest.mark.parametrize(
    ("size", "stride", "padding", "inputs", "outputs", "height"), CONVOLUTIONS
)
def test_every_formulation_is_the_convolution(
    size, stride, padding, inputs, outputs, height
):
    x = normal(0, 2, height, 11, inputs)
    kernel = normal(1, size, size, inputs, outputs)
    ours = functools.partial(conv.conv2d, stride=stride, padding=padding)
    plain = functools.partial(lax_conv, stride=stride, padding=padding)
    g = normal(2, *jax.eval_shape(plain, x, kernel).shape)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(f, x, kernel):
        y, pullback = jax.vjp(f, x, kernel)
        return y, pullback(g)

    y, gradients = value_and_gradients(ours, x, kernel)
    expected, expected_gradients = value_and_gradients(plain, x, kernel)
    chex.assert_trees_all_close(y, expected, atol=3e-5)
    chex.assert_trees_all_close(gradients, expected_gradients, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_stride_2_gradient_is_not_dilated_on_cpu(size):
    """XLA's CPU backend runs a dilated convolution on a slow path."""
    x, kernel = normal(0, 2, 8, 8, 4), normal(1, size, size, 4, 4)
    padding = (size - 1) // 2
    loss = lambda x: jnp.sum(conv.conv2d(x, kernel, stride=2, padding=padding) ** 2)  # noqa: E731
    text = jax.jit(jax.grad(loss)).lower(x).compile().as_text()
    assert "lhs_dilate" not in text


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 32), (32, 8)])
def test_kernel_gradient_is_matrix_products_without_avx512(inputs, outputs, has_avx512):
    """XLA's own, a convolution with a window as large as the image, is slow there."""
    x, g = normal(0, 2, 8, 8, inputs), normal(1, 2, 8, 8, outputs)
    loss = lambda kernel, x, g: jnp.sum(conv.conv2d(x, kernel, padding=1) * g)  # noqa: E731
    kernel = jnp.ones((3, 3, inputs, outputs))
    compiled = jax.jit(jax.grad(loss)).lower(kernel, x, g).compile()
    assert (" convolution(" in compiled.as_text()) == has_avx512


def test_dilation_and_groups_reach_the_convolution():
    x, kernel = normal(0, 1, 9, 9, 4), normal(1, 3, 3, 2, 6)
    y = conv.conv2d(x, kernel, padding=2, dilation=2, groups=2)
    halves = [
        jax.lax.conv_general_dilated(
            x[..., 2 * i : 2 * i + 2],
            kernel[..., 3 * i : 3 * i + 3],
            (1, 1),
            ((2, 2), (2, 2)),
            rhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for i in (0, 1)
    ]
    chex.assert_trees_all_close(y, jnp.concatenate(halves, -1), atol=1e-5)


def test_conv_module_adds_its_bias():
    x = normal(0, 1, 4, 4, 3)
    layer = conv.Conv(5, 1, use_bias=True)
    params = layer.init(jax.random.key(0), x)["params"]
    assert set(params) == {"kernel", "bias"}
    zeroed = {**params, "bias": jnp.zeros(5)}
    difference = layer.apply({"params": params}, x) - layer.apply({"params": zeroed}, x)
    expected = jnp.broadcast_to(params["bias"].reshape(1, 1, 1, 5), difference.shape)
    chex.assert_trees_all_close(difference, expected, atol=1e-6)


def test_max_gives_its_gradient_to_the_first_winner():
    x = jnp.array([[1.0, 3.0, 3.0], [2.0, 0.0, 2.0]])
    gradient = jax.grad(lambda x: jnp.sum(max_along(x, -1)))(x)
    chex.assert_trees_all_equal(gradient, jnp.array([[0.0, 1, 0], [1, 0, 0]]))


def test_sigmoid_of_bfloat16_is_float32s_rounded_once():
    x = (4 * normal(0, 500)).astype(jnp.bfloat16)
    wide, eps = x.astype(jnp.float32), float(jnp.finfo(jnp.bfloat16).eps)
    slope = jax.vmap(jax.grad(sigmoid))
    for f in (sigmoid, slope, jax.vmap(jax.grad(jax.grad(sigmoid)))):
        actual, exact = f(x), f(wide)
        assert actual.dtype == jnp.bfloat16
        # Of derivatives what is rounded is the value of which they are made.
        atol = 0 if f is sigmoid else eps
        chex.assert_trees_all_close(
            actual.astype(jnp.float32), exact, rtol=eps / 2, atol=atol
        )
    chex.assert_trees_all_equal(sigmoid(wide), nn.sigmoid(wide))


@pytest.mark.usefixtures("enabled")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_max_by_our_operation_has_the_same_winners(dtype):
    # Whole numbers, for equals within a row; enough rows for several threads.
    x = jnp.round(2 * normal(0, 9, 33, 40, 17)).astype(dtype)
    x = x.at[0, 0, 0, 5:].set(jnp.nan).at[0, 0, 1].set(-jnp.inf)

    def winners(x):
        _, pull = jax.vjp(lambda x: max_along(x, -1), x)
        return pull(jnp.ones((*x.shape[:-1], 1), dtype))[0]

    text = jax.jit(winners).lower(x).as_text()
    assert "jaxattn_first_maximum" in text
    expected = jnp.argmax(x, -1)
    actual = jax.jit(winners)(x)
    chex.assert_trees_all_equal(jnp.argmax(actual, -1), expected)
    chex.assert_trees_all_equal(jnp.sum(actual, -1), jnp.ones(expected.shape, dtype))
    mapped = jax.jit(jax.vmap(winners))(x[:2])
    chex.assert_trees_all_equal(mapped, actual[:2])


def test_max_gradient_under_jit_is_eagers():
    """Fails with `jnp.max` on CPU: the operand is recomputed with other rounding."""
    x, w = normal(0, 4, 8, 8, 16), normal(1, 1, 1, 16, 16)

    def loss(x):
        y = nn.relu(lax_conv(x, w, 1, 0))
        y = y * jax.nn.sigmoid(jnp.mean(y, (1, 2), keepdims=True))
        return jnp.sum(jnp.sin(max_along(y, -1)))

    chex.assert_trees_all_close(
        jax.jit(jax.grad(loss))(x), jax.grad(loss)(x), atol=1e-5
    )


def test_pools_that_do_not_overlap_have_torchs_values_and_gradients():
    # Whole numbers, for equals within a window; the last row and column fill none.
    x = jnp.round(2 * normal(0, 2, 5, 7, 3))
    g = normal(1, 2, 2, 3, 3)
    expected, dx = np.zeros((2, 2, 3, 3)), np.zeros(x.shape)
    for n, i, j, c in np.ndindex(2, 2, 3, 3):
        window = np.asarray(x)[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        expected[n, i, j, c] = window.max()
        row, column = divmod(int(window.argmax()), 2)
        dx[n, 2 * i + row, 2 * j + column, c] = g[n, i, j, c]
    pool = functools.partial(max_pool, size=2, stride=2, padding=0)
    chex.assert_trees_all_equal(np.asarray(jax.jit(pool)(x), float), expected)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(pool(x) * g)))(x)
    chex.assert_trees_all_close(gradient, dx.astype(np.float32), atol=0)


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 2, 1), (3, 2, 0), (3, 1, 1), (2, 1, 0), (5, 3, 2)],
)
def test_pools_that_overlap_have_torchs_gradients(size, stride, padding):
    # Whole numbers, for equals within a window; sides of which windows leave some over.
    x = jnp.round(2 * normal(0, 2, 8, 11, 3))
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(np.asarray(x), pads, constant_values=-np.inf)
    pool = functools.partial(max_pool, size=size, stride=stride, padding=padding)
    g = normal(1, *pool(x).shape)
    dx = np.zeros(padded.shape, np.float32)
    for n, i, j, c in np.ndindex(g.shape):
        top, left = i * stride, j * stride
        window = padded[n, top : top + size, left : left + size, c]
        row, column = divmod(int(window.argmax()), size)
        dx[n, top + row, left + column, c] += g[n, i, j, c]
    expected = dx[:, padding : padding + 8, padding : padding + 11]
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(pool(x) * g)))(x)
    chex.assert_trees_all_close(gradient, expected, atol=1e-6)


def test_max_pool_gradient_is_no_scatter():
    """Which XLA's CPU backend runs on one core, by maps of positions."""
    x = normal(0, 1, 8, 8, 2)
    pool = lambda x: jnp.sum(max_pool(x, 3, stride=2, padding=1) ** 2)  # noqa: E731
    text = jax.jit(jax.grad(pool)).lower(x).as_text()
    assert "select_and_scatter" not in text


@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 2), (5, 2, 4)])
def test_maps_smaller_than_the_kernel_are_no_convolution(size, stride, side):
    """XLA's CPU backend exchanges the two, and loops over one as large as 512 maps."""
    x, kernel = normal(0, 2, side, side, 8), normal(1, size, size, 8, 8)
    conv2d = functools.partial(conv.conv2d, stride=stride, padding=size // 2)
    loss = lambda x, k: jnp.sum(conv2d(x, k) ** 2)  # noqa: E731
    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).as_text()
    assert "stablehlo.convolution" not in text


def test_kernel_gradient_of_a_product_transposes_no_map():
    """XLA's CPU backend would, if the product were not of matrices."""
    x, kernel = normal(0, 2, 8, 8, 16), normal(1, 1, 1, 16, 8)
    loss = lambda k, x: jnp.sum(conv.conv2d(x, k) ** 2)  # noqa: E731
    text = jax.jit(jax.grad(loss)).lower(kernel, x).compile().as_text()
    assert "f32[16,128]" not in text


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7])
def test_adaptive_pooling_has_torchs_windows(size):
    x = np.asarray(normal(0, 2, size, size + 1, 3))
    rows = [(i * size // 2, -(-(i + 1) * size // 2)) for i in (0, 1)]
    cols = [(i * (size + 1) // 2, -(-(i + 1) * (size + 1) // 2)) for i in (0, 1)]
    expected = [[x[:, a:b, c:d].mean((1, 2)) for c, d in cols] for a, b in rows]
    expected = np.transpose(np.array(expected), (2, 0, 1, 3))
    np.testing.assert_allclose(adaptive_avg_pool(x, 2), expected, atol=1e-6)


@pytest.mark.parametrize("kernels", [False, True])
def test_relu_and_its_gradient_are_jaxs(kernels, request):
    if kernels:
        request.getfixturevalue("enabled")
    x = jnp.array([-1.0, -0.0, 0.0, 2.0, jnp.inf, jnp.nan])
    actual, expected = (
        jax.vjp(jax.jit(f), x)[1](2 * jnp.ones(6))[0] for f in (relu, jax.nn.relu)
    )
    chex.assert_trees_all_equal((relu(x), actual), (jax.nn.relu(x), expected))


@pytest.mark.usefixtures("enabled")
def test_relus_gradient_needs_its_input_no_more():
    x, kernel = jnp.ones((4, 32, 32, 8)), jnp.ones((3, 3, 8, 8))

    def memory(activation):
        def loss(kernel):
            y = x
            for _ in range(4):
                y = activation(conv2d(y, kernel, padding=1))
            return jnp.sum(y)

        compiled = jax.jit(jax.grad(loss)).lower(kernel).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(relu) <= memory(jax.nn.relu) - 2 * x.nbytes


def test_batch_norm_stores_the_unbiased_variance():
    x = normal(0, 4, 3, 3, 2) * 3 + 1
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, train=False)
    y, updated = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    flat = np.asarray(x).reshape(-1, 2)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(y).std((0, 1, 2)), 1, rtol=1e-4)


def test_batch_norm_initialisation_leaves_its_statistics_alone():
    x = normal(0, 4, 3, 3, 2) + 5
    stats = BatchNorm().init(jax.random.key(0), x, train=True)["batch_stats"]
    chex.assert_trees_all_equal(stats, {"mean": jnp.zeros(2), "var": jnp.ones(2)})


def test_batch_norm_statistics_are_global_over_a_mapped_axis():
    x = normal(0, 8, 2, 2, 3)
    variables = BatchNorm().init(jax.random.key(0), x, train=False)

    def step(norm, x):
        return norm.apply(variables, x, train=True, mutable=["batch_stats"])

    whole = step(BatchNorm(), x)
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(
        functools.partial(step, BatchNorm(axis_name="data")),
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=(PartitionSpec("data"), PartitionSpec()),
    )(x)
    chex.assert_trees_all_close(mapped, whole, atol=1e-5)


# Statistics far from 0 ---------------------------------------------------------------

# Of unit deviation: 30 units in the last place of float32 near 1. PyTorch's own errors
# at means of 10, 100 and 1000 are 1.8e-7, 8.5e-7 and 1.0e-5.
EXACT = 2e-6


def far_from_0(mean):
    """`[16, 8, 8, 4]` of deviation 1; "spot" is a mean of 1000 and one value of 0."""
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 4))
    if mean != "spot":
        return np.float32(x + mean)
    x += 1000
    x[0, 0, 0] = 0  # where a shift by the first value would be a bad one
    return np.float32(x)


def normalized(x, g, axes):
    """Normalised values and the gradient of their product with `g`, in float64."""
    x, g = np.float64(x), np.float64(g)
    mean = functools.partial(np.mean, axis=axes, keepdims=True)
    factor = 1 / np.sqrt(mean((x - mean(x)) ** 2) + 1e-5)
    y = (x - mean(x)) * factor
    return y, factor * (g - mean(g) - y * mean(g * y))


def over_mesh(step, x, g):
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))
    return jax.jit(step)(*jax.device_put((x, g), sharding))


def over_pmap(step, x, g):
    shards = (v.reshape(4, -1, *v.shape[1:]) for v in (x, g))
    (y, dx), stats = jax.pmap(step, "data", devices=jax.devices()[:4])(*shards)
    return (y.reshape(x.shape), dx.reshape(x.shape)), jax.tree.map(
        lambda v: v[0], stats
    )


BATCH_NORM_WAYS = {
    "jit": (None, lambda step, x, g: jax.jit(step)(x, g)),
    "mesh": (None, over_mesh),
    "pmap": ("data", over_pmap),
    "kernels": (None, lambda step, x, g: jax.jit(step)(x, g)),
}


@pytest.mark.parametrize("mean", [0, 10, 100, 1000, "spot"])
@pytest.mark.parametrize("way", BATCH_NORM_WAYS)
def test_batch_norm_is_exact_far_from_0(way, mean, request):
    if way == "kernels":
        request.getfixturevalue("enabled")
    axis_name, run = BATCH_NORM_WAYS[way]
    norm, x = BatchNorm(axis_name=axis_name), far_from_0(mean)
    g = np.asarray(normal(1, *x.shape))
    variables = norm.init(jax.random.key(0), x, train=False)

    def step(x, g):
        apply = lambda x: norm.apply(variables, x, train=True, mutable=["batch_stats"])  # noqa: E731
        y, pullback, updated = jax.vjp(apply, x, has_aux=True)
        return (y, *pullback(g)), updated["batch_stats"]

    (y, dx), stats = run(step, x, g)
    expected = normalized(x, g, (0, 1, 2))
    np.testing.assert_allclose(y, expected[0], atol=EXACT, rtol=EXACT)
    np.testing.assert_allclose(dx, expected[1], atol=EXACT, rtol=EXACT)
    variance = np.float64(x).var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * variance, rtol=EXACT)
    np.testing.assert_allclose(
        stats["mean"], 0.1 * np.float64(x).mean((0, 1, 2)), rtol=EXACT, atol=EXACT
    )


@pytest.mark.parametrize("mean", [0, 10, 100, 1000, "spot"])
def test_group_norm_is_exact_far_from_0(mean):
    x = far_from_0(mean)
    g = np.asarray(normal(1, *x.shape))
    norm = GroupNorm(2)
    variables = norm.init(jax.random.key(0), x)
    y, pullback = jax.vjp(jax.jit(lambda x: norm.apply(variables, x)), x)
    grouped = (16, 8, 8, 2, 2)
    expected = normalized(x.reshape(grouped), g.reshape(grouped), (1, 2, 4))
    for ours, theirs in zip((y, *pullback(g)), expected, strict=True):
        theirs = theirs.reshape(x.shape)
        np.testing.assert_allclose(ours, theirs, atol=EXACT, rtol=EXACT)


def test_batch_norm_refuses_a_single_value_per_channel():
    variables = BatchNorm().init(jax.random.key(0), jnp.ones((1, 3)), train=False)
    with pytest.raises(ValueError, match="fewer than two values per channel"):
        BatchNorm().apply(
            variables, jnp.ones((1, 3)), train=True, mutable=["batch_stats"]
        )


@pytest.mark.parametrize("size", [(5, 7), (9, 2), (3, 1)])
def test_bilinear_resizing_interpolates_between_corners(size):
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype(np.float32)
    expected = x
    for axis, length in enumerate(size, 1):
        n = x.shape[axis]
        places = np.linspace(0, n - 1, length)
        line = lambda v, n=n, places=places: np.interp(places, range(n), v)  # noqa: E731
        expected = np.apply_along_axis(line, axis, expected)
    np.testing.assert_allclose(
        resize_bilinear(x, size, align_corners=True), expected, atol=1e-6
    )
