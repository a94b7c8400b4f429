"""Derivatives of every block and network: forwards, backwards, and of these again."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from test_inputs import BLOCKS, KEYWORDS
from tiers import slow_from

import jaxattn.attention
from jaxattn import create_model, list_models
from jaxattn.models.registry import model_keywords
from jaxattn.ops import BatchNorm, conv2d, max_pool

# Arrays of more values than this, of VGG-11's classifier, are constants.
MOST = 3_000_000
OWN = {"SCC": {"kernel_size": 5, "mask_prob": 0.1}}
# A network compiled in seconds, with everything that a network has.
SMALL = {"efficient_resnet": {"base_width": 2}}


# Blocks that stand for what the others are made of.
MAIN = (
    *("AttentionResidualBlock", "CBAM", "CompetitiveAttention", "NonLocal", "SCC"),
    "SCSA",
)


def everything(*kept):
    """Some of the default tier, a few more of `full`, all others of `slow`."""
    main = [name for name in MAIN if name not in kept]
    others = [n for n in [*BLOCKS, *list_models("classification")] if n not in MAIN]
    return [*kept, *slow_from(len(main), [*main, *others])]


# Trees ------------------------------------------------------------------------------


def random_like(tree, seed):
    """A direction of length 1."""
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), tree)
    return scaled(1 / norm(drawn), drawn)


def norm(tree):
    return float(np.sqrt(sum(np.sum(np.square(v)) for v in jax.tree.leaves(tree))))


def scaled(factor, tree):
    return jax.tree.map(lambda v: factor * v, tree)


def plus(tree, factor, other):
    return jax.tree.map(lambda a, b: a + factor * b, tree, other)


def product(tree, other):
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return sum(jnp.vdot(a, b) for a, b in leaves)


def assert_near(actual, expected, tolerance):
    for key, value in jax.device_get(expected).items():
        error = norm(plus(jax.device_get(actual[key]), -1, value)) / norm(value)
        assert error < tolerance, f"{key}: {error:.1e}"


# Derivatives ------------------------------------------------------------------------


def derivatives(loss, at, v):
    """Along `v`: of a loss, and of its gradient in two ways."""

    @jax.jit
    def along(at, v):
        gradient = jax.grad(loss)
        value, along_v = jax.jvp(gradient, (at,), (v,))
        return {
            "gradient": value,
            "first": jax.jvp(loss, (at,), (v,))[1],
            "forward over reverse": along_v,
            "reverse over reverse": jax.grad(lambda at: product(gradient(at), v))(at),
        }

    return along(at, v)


def central_differences(loss, at, v, h=1e-6):
    both = jax.jit(jax.value_and_grad(loss))
    above, below = (jax.device_get(both(plus(at, sign * h, v))) for sign in (1, -1))
    value, gradient = scaled(1 / (2 * h), plus(above, -1, below))
    return {
        "first": value,
        "forward over reverse": gradient,
        "reverse over reverse": gradient,
    }


# Operations -------------------------------------------------------------------------

# Side of the kernel, stride, padding, dilation and groups; channels in and out. On CPUs
# each but the last has a formulation of its own, or two.
CONVOLUTIONS = {
    "3x3": (3, 1, 1, 1, 1, 3, 4),
    "3x3 of many channels": (3, 1, 1, 1, 1, 20, 4),
    "3x3 stride 2": (3, 2, 1, 1, 1, 3, 4),
    "5x5 stride 2": (5, 2, 2, 1, 1, 3, 4),
    "1x1 stride 2": (1, 2, 0, 1, 1, 3, 4),
    "dilated, in groups": (3, 1, 2, 2, 2, 4, 6),
}
POOLS = {"3x3 stride 2": (3, 2, 1), "5x5 stride 3": (5, 3, 2), "2x2": (2, 2, 0)}


def convolution(name):
    """A convolution, and operands."""
    size, stride, padding, dilation, groups, inputs, outputs = CONVOLUTIONS[name]
    keywords = {"padding": padding, "dilation": dilation, "groups": groups}
    rng = np.random.default_rng(0)
    at = {
        "x": rng.normal(size=(2, 6, 7, inputs)),
        "kernel": rng.normal(size=(size, size, inputs // groups, outputs)),
    }
    return functools.partial(conv2d, stride=stride, **keywords), at


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("has_avx512", [True, False])
def test_convolutions_derivatives_are_central_differences(
    name, has_avx512, monkeypatch
):
    monkeypatch.setattr("jaxattn.ops.conv._has_avx512", lambda: has_avx512)
    conv, at = convolution(name)
    loss = lambda at: jnp.mean(jnp.sin(conv(at["x"], at["kernel"])))  # noqa: E731
    with jax.enable_x64(True):
        v = random_like(at, 1)
        expected = central_differences(loss, at, v)
        assert_near(derivatives(loss, at, v), expected, 1e-6)


@pytest.mark.parametrize("kernels", [False, True])
def test_third_derivatives_are_central_differences_of_the_second(kernels, request):
    if kernels:
        request.getfixturevalue("enabled")
    conv, at = convolution("3x3 stride 2")
    loss = lambda at: jnp.mean(conv(at["x"], at["kernel"]) ** 3)  # noqa: E731

    def second(at, v):
        return jax.jvp(jax.grad(loss), (at,), (v,))[1]

    with jax.enable_x64(not kernels):
        # Cubic in each operand: large steps lose nothing to float32's rounding.
        dtype, h = (np.float32, 1.0) if kernels else (np.float64, 1e-5)
        at, v = jax.tree.map(dtype, (at, random_like(at, 1)))
        along = lambda h: second(plus(at, h, v), v)  # noqa: E731
        third = jax.jvp(along, (dtype(0),), (dtype(1),))[1]
        expected = scaled(1 / (2 * h), plus(along(h), -1, along(-h)))
        if kernels:  # of a polynomial of degree 4 in h, with a step of 2 h
            twice = scaled(1 / (4 * h), plus(along(2 * h), -1, along(-2 * h)))
            expected = scaled(1 / 3, plus(scaled(4, expected), -1, twice))
        assert_near({"third": third}, {"third": expected}, 1e-3 if kernels else 1e-6)


@pytest.mark.parametrize("name", POOLS)
def test_max_pools_derivatives_are_central_differences(name):
    size, stride, padding = POOLS[name]
    at = {"x": np.random.default_rng(0).normal(size=(2, 9, 8, 3))}
    with jax.enable_x64(True):
        v = random_like(at, 1)

        def loss(at):
            y = max_pool(at["x"], size, stride=stride, padding=padding)
            return jnp.mean(jnp.sin(y))

        assert_near(derivatives(loss, at, v), central_differences(loss, at, v), 1e-6)


def normalisation(residual):
    """A batch normalisation with what follows it, in training, and operands."""
    rng, shape = np.random.default_rng(0), (3, 5, 4, 6)
    at = {
        "x": rng.normal(2, 3, shape),
        "scale": rng.normal(1, 0.3, 6),
        "bias": rng.normal(1, 0.3, 6),
    }
    if residual:
        at["residual"] = rng.normal(size=shape)

    def norm(at, activation):
        stats = {"mean": jnp.zeros(6), "var": jnp.ones(6)}
        return BatchNorm().apply(
            {"params": {k: at[k] for k in ("scale", "bias")}, "batch_stats": stats},
            at["x"],
            train=True,
            residual=at.get("residual"),
            activation=activation,
            mutable=["batch_stats"],
        )

    return norm, at


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize(
    ("activation", "residual"), [(None, False), ("relu", True), ("relu6", True)]
)
def test_normalisations_derivatives_are_central_differences(
    activation, residual, kernels, request
):
    """Those of the running statistics among them."""
    if kernels:
        request.getfixturevalue("enabled")
    norm, at = normalisation(residual)

    def loss(at):
        y, stats = norm(at, activation)
        return jnp.mean(jnp.sin(y)) + sum(
            jnp.mean(jnp.sin(v)) for v in jax.tree.leaves(stats)
        )

    v = random_like(at, 1)
    with jax.enable_x64(True):
        expected = central_differences(loss, at, v)
    if not kernels:
        with jax.enable_x64(True):
            assert_near(derivatives(loss, at, v), expected, 1e-6)
        return
    at, v = jax.tree.map(np.float32, (at, v))
    assert "jaxattn_norm_gradient" in jax.jit(jax.grad(loss)).lower(at).as_text()
    assert_near(derivatives(loss, at, v), expected, 1e-4)


# Mapped -----------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("axes", [(0, None), (None, 3), (1, 0)])
def test_mapped_convolutions_are_those_one_by_one(axes, kernels, request):
    """Output and both gradients, whichever operand is mapped."""
    if kernels:
        request.getfixturevalue("enabled")
    conv, at = convolution("3x3 stride 2")
    rng = np.random.default_rng(1)
    operands = [
        np.float32(v if i is None else np.stack([v, v + rng.normal(size=v.shape)], i))
        for v, i in zip((at["x"], at["kernel"]), axes, strict=True)
    ]

    def all_three(x, kernel):
        y, pullback = jax.vjp(conv, x, kernel)
        return y, *pullback(jnp.sin(y))

    actual = jax.jit(jax.vmap(all_three, axes))(*operands)
    for i in (0, 1):
        own = [
            v if axis is None else np.take(v, i, axis)
            for v, axis in zip(operands, axes, strict=True)
        ]
        mapped = [v[i] for v in actual]
        chex.assert_trees_all_close(mapped, list(all_three(*own)), atol=1e-4)


@pytest.mark.parametrize("kernels", [False, True])
def test_jacobians_of_both_modes_are_equal(kernels, request):
    """Which map tangents, and cotangents, over the operations above."""
    if kernels:
        request.getfixturevalue("enabled")
    conv, at = convolution("3x3")
    x, kernel = np.float32(at["x"]), np.float32(at["kernel"])

    variables = BatchNorm().init(jax.random.key(0), jnp.ones((1, 4)), train=False)

    def f(x):
        y, _ = BatchNorm().apply(
            variables,
            conv(jnp.sin(x), kernel),
            train=True,
            activation="relu",
            mutable=["batch_stats"],
        )
        return max_pool(y, 3, stride=2, padding=1).mean((1, 2))

    forward, reverse = (jax.jit(mode(f))(x) for mode in (jax.jacfwd, jax.jacrev))
    assert np.abs(reverse).max() > 0
    chex.assert_trees_all_close(forward, reverse, atol=1e-5)


@pytest.mark.parametrize("kernels", [False, True])
def test_mapped_normalisations_are_those_one_by_one(kernels, request):
    """Results and gradients, of mapped maps and of mapped scales."""
    if kernels:
        request.getfixturevalue("enabled")
    norm, at = normalisation(residual=True)
    twice = lambda v: np.float32([v, 2 * v])  # noqa: E731
    mapped = {key: twice(at[key]) for key in ("x", "scale")}
    fixed = {key: np.float32(at[key]) for key in ("bias", "residual")}

    def all_of_it(mapped):
        f = lambda at: norm(at, "relu")[0]  # noqa: E731
        y, pullback = jax.vjp(f, mapped | fixed)
        tangents = jax.tree.map(jnp.ones_like, mapped | fixed)
        return y, pullback(jnp.sin(y)), jax.jvp(f, (mapped | fixed,), (tangents,))[1]

    pick = lambda i, tree: jax.tree.map(lambda v: v[i], tree)  # noqa: E731
    actual = jax.jit(jax.vmap(all_of_it))(mapped)
    for i in (0, 1):
        chex.assert_trees_all_close(
            pick(i, actual), all_of_it(pick(i, mapped)), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("name", ["conv", "SCC"])
def test_gradients_over_a_mapped_axis_are_those_of_the_batch(name):
    """By `jax.shard_map`, which sums the kernel's over the devices by itself."""
    conv, at = convolution("3x3")
    scc = jaxattn.attention.SCC(4)
    params = scc.init(jax.random.key(0), at["x"])["params"]
    params = params if name == "SCC" else {"kernel": np.float32(at["kernel"])}
    x = np.float32(np.concatenate([at["x"], 2 * at["x"]]))
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))

    def f(x, params):
        if name == "SCC":
            return scc.apply({"params": params}, x)
        return max_pool(conv(x, params["kernel"]), 3, stride=2, padding=1)

    shards = PartitionSpec("data")
    mapped = jax.shard_map(
        f, mesh=mesh, in_specs=(shards, PartitionSpec()), out_specs=shards
    )

    def gradients(f):
        loss = lambda *operands: jnp.sum(jnp.sin(f(*operands)))  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1)))(x, params)

    actual, expected = gradients(mapped), gradients(f)
    chex.assert_trees_all_close(actual, expected, atol=1e-3)


# Blocks and networks ----------------------------------------------------------------


def toy(name):
    """The block or network, and an input."""
    rng = np.random.default_rng(0)
    if name in BLOCKS:
        kwargs = KEYWORDS.get(name, {}) | OWN.get(name, {})
        module = getattr(jaxattn.attention, name)(**kwargs)
        return module, rng.normal(size=(3, 6, 6, 8))
    kwargs = dict(SMALL.get(name, {}))
    if "stem" in model_keywords(name):
        kwargs["stem"] = "cifar"
    if "dropout_rate" in model_keywords(name):
        kwargs["dropout_rate"] = 0.0  # whose draws are others in float64
    return create_model(name, 3, **kwargs), rng.normal(size=(4, 32, 32, 3))


def loss_and_point(name):
    """A loss in training mode, and the parameters and the input where it is taken."""
    module, x = toy(name)
    rngs = {key: jax.random.key(1) for key in ("params", "dropout", "forcing")}
    variables = jax.device_get(jax.jit(lambda x: module.init(rngs, x))(x))
    leaves, treedef = jax.tree.flatten(variables.pop("params", {}))
    fixed = {i: leaf for i, leaf in enumerate(leaves) if leaf.size > MOST}
    free = {i: leaf for i, leaf in enumerate(leaves) if i not in fixed}

    def loss(at):
        x, params = at
        dtype = x.dtype
        leaves = [
            params[i] if i in params else jnp.asarray(fixed[i], dtype)
            for i in range(treedef.num_leaves)
        ]
        y, _ = module.apply(
            {"params": jax.tree.unflatten(treedef, leaves), **variables},
            x,
            train=True,
            rngs=rngs,
            mutable=["batch_stats"],
        )
        return jnp.mean(jnp.sin(2 * y))

    return loss, jax.tree.map(np.float64, (x, free))


@pytest.mark.parametrize("name", everything("CBAM", "SCC"))
def test_derivatives_are_central_differences(name):
    """In float64, where hardly a unit of a network passes a kink within 1e-6."""
    with jax.enable_x64(True):
        loss, at = loss_and_point(name)
        v = random_like(at, 2)
        assert_near(derivatives(loss, at, v), central_differences(loss, at, v), 1e-5)


@pytest.mark.usefixtures("enabled")
@pytest.mark.parametrize("name", everything("SCC"))
def test_derivatives_by_onednn_are_those_without(name):
    if name.startswith("shufflenet"):
        pytest.skip("BatchNorm of its last map's four values is unstable in float32")
    with jax.enable_x64(True):
        loss, at = loss_and_point(name)
        v = random_like(at, 2)
        expected = derivatives(loss, at, v)
    at, v = jax.tree.map(np.float32, (at, v))
    actual = derivatives(loss, at, v)
    # In float32 a unit or two of a network are on the other side of a kink.
    tolerance = 1e-4 if name in BLOCKS else 1e-2
    # Along a direction of chance a network's is a small part of the gradient.
    first = abs(float(actual.pop("first")) - float(expected.pop("first")))
    assert first < tolerance * norm(jax.device_get(expected["gradient"]))
    assert_near(actual, expected, tolerance)
