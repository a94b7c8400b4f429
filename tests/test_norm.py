"""Batch normalisation with what follows it, by `norm.cc` and without."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import full_but

from jaxattn.models.resnet import BasicBlock
from jaxattn.ops import BatchNorm, cpu_kernels

# One channel, a multiple of 16 or not, fewer positions than make a row, and many parts.
SHAPES = [(3, 5, 7, 1), (4, 8, 8, 16), (2, 3, 3, 58), (2, 2, 2, 24), (16, 32, 32, 20)]
# Of float32 the rounding of a few operations, of bfloat16 that of a result: 8 bits.
TOLERANCES = {jnp.float32: 5e-6, jnp.bfloat16: 2**-7}


def operands(shape, residual, dtype=jnp.float32):
    """Maps and parameters, and what comes back of the result."""
    rng = np.random.default_rng(0)
    of_channel = lambda mean: jnp.float32(rng.normal(mean, 0.5, shape[-1:]))  # noqa: E731
    at = {
        "x": jnp.asarray(rng.normal(5, 2, shape), dtype),
        "scale": of_channel(1),
        "bias": of_channel(0.5),
    }
    if residual:
        at["residual"] = jnp.asarray(rng.normal(size=shape), dtype)
    return at, jnp.asarray(rng.normal(size=shape), dtype)


def apply(at, activation=None, dtype=None):
    """Result and new running statistics, in training."""
    C = at["x"].shape[-1]
    variables = {
        "params": {"scale": at["scale"], "bias": at["bias"]},
        "batch_stats": {"mean": jnp.zeros(C), "var": jnp.ones(C)},
    }
    return BatchNorm(dtype=dtype).apply(
        variables,
        at["x"],
        train=True,
        residual=at.get("residual"),
        activation=activation,
        mutable=["batch_stats"],
    )


def everything(at, g, activation):
    """Result, running statistics, and the gradients of a loss of both."""

    @jax.jit
    def run(at):
        def loss(at):
            y, stats = apply(at, activation)
            others = sum(jnp.sum(jnp.sin(v)) for v in jax.tree.leaves(stats))
            return jnp.sum((y * g).astype(jnp.float32)) + others, (y, stats)

        return jax.value_and_grad(loss, has_aux=True)(at)

    return run(at)


def assert_alike(actual, expected, tolerance):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.float64(a), np.float64(b)
        assert np.abs(a - b).max() <= tolerance * (1e-3 + np.abs(b).max())


@pytest.mark.usefixtures("enabled")
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", full_but([None, "relu", "relu6"], "relu"))
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_without(shape, activation, residual):
    at, g = operands(shape, residual)
    actual = everything(at, g, activation)
    with cpu_kernels.disabled():
        expected = everything(at, g, activation)
    assert_alike(actual, expected, 5e-6)


@pytest.mark.usefixtures("enabled")
@pytest.mark.parametrize("residual", [False, True])
def test_bfloat16_is_rounded_once(residual):
    """Statistics, sum and activation are of float32."""
    at, g = operands((8, 8, 8, 24), residual, jnp.bfloat16)
    (y, stats), pullback = jax.vjp(lambda at: apply(at, "relu"), at)
    gradients = pullback((g, jax.tree.map(jnp.zeros_like, stats)))[0]
    wide = jax.tree.map(jnp.float32, at)
    with cpu_kernels.disabled():
        (expected, wide_stats), pullback = jax.vjp(lambda at: apply(at, "relu"), wide)
    wide_g = jnp.float32(g), jax.tree.map(jnp.zeros_like, wide_stats)
    assert y.dtype == jnp.bfloat16
    chex.assert_trees_all_close(stats, wide_stats, rtol=1e-5)
    half_a_digit = 2**-8 * (1 + 1e-3)
    np.testing.assert_allclose(
        np.float64(y), np.float64(expected), rtol=half_a_digit, atol=1e-6
    )
    for name, gradient in pullback(wide_g)[0].items():
        tolerance = half_a_digit if name in ("x", "residual") else 1e-4
        np.testing.assert_allclose(
            np.float64(gradients[name]), gradient, rtol=tolerance, atol=1e-4
        )


def by_hand(at, activation):
    """The same in operations of `jax.numpy`, in float64."""
    x, axes = at["x"], (0, 1, 2)
    mean, var = (f(x, axes, keepdims=True) for f in (jnp.mean, jnp.var))
    scale, bias = (at[key].reshape(1, 1, 1, -1) for key in ("scale", "bias"))
    y = (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias
    y = y + at["residual"] if "residual" in at else y
    if activation is None:
        return y
    return jnp.clip(y, 0, 6 if activation == "relu6" else None)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("residual", full_but([False, True], True))
@pytest.mark.parametrize("activation", full_but([None, "relu", "relu6"], "relu"))
def test_training_is_the_textbooks(activation, residual, kernels, request):
    if kernels:
        request.getfixturevalue("enabled")
    at, g = operands((4, 6, 5, 3), residual)
    y, pullback = jax.vjp(jax.jit(lambda at: apply(at, activation)[0]), at)
    with jax.enable_x64(True):
        wide = jax.tree.map(jnp.float64, at)
        expected, wide_pullback = jax.vjp(lambda at: by_hand(at, activation), wide)
        gradients = wide_pullback(jnp.float64(g))
    assert_alike((y, pullback(g)), (expected, gradients), 5e-6)


def test_evaluation_adds_and_clips():
    at, _ = operands((2, 4, 4, 3), residual=True)
    variables = BatchNorm().init(jax.random.key(0), at["x"], train=False)
    given = {"residual": at["residual"], "activation": "relu"}
    actual = BatchNorm().apply(variables, at["x"], train=False, **given)
    plain = BatchNorm().apply(variables, at["x"], train=False)
    expected = jax.nn.relu(plain + at["residual"])
    chex.assert_trees_all_equal(actual, expected)


@pytest.mark.usefixtures("enabled")
def test_what_is_not_a_number_stays_so():
    """A run that has diverged is to be seen."""
    at, g = operands((4, 8, 8, 3), residual=True)
    at["x"] = at["x"].at[0, 0, 0, 1].set(jnp.nan)
    for activation in ("relu", "relu6"):
        (_, (y, _)), gradients = everything(at, g, activation)
        assert np.isnan(y[..., 1]).all()
        assert np.isnan(gradients["x"][..., 1]).all()
        assert np.isfinite(y[..., 0]).all()


@pytest.mark.usefixtures("enabled")
def test_results_do_not_depend_on_the_threads():
    at, g = operands(SHAPES[-1], residual=True)
    first = everything(at, g, "relu")
    for _ in range(10):
        chex.assert_trees_all_equal(everything(at, g, "relu"), first)


@pytest.mark.usefixtures("enabled")
def test_a_block_has_one_call_for_each_normalisation_and_direction():
    block, x = BasicBlock(8), jnp.ones((2, 8, 8, 8))
    variables = block.init(jax.random.key(0), x)

    def loss(params):
        y, _ = block.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(y)

    text = jax.jit(jax.grad(loss)).lower(variables["params"]).as_text()
    assert text.count("@jaxattn_norm_gradient") == 2
    assert text.count("@jaxattn_norm_") == 4
    for operation in ("maximum", "rsqrt", "select"):
        assert f"stablehlo.{operation}" not in text


@pytest.mark.usefixtures("library")
def test_other_dtypes_and_several_devices_are_without(monkeypatch):
    def calls(dtype, computed_in=None):
        at, _ = operands((2, 4, 4, 3), False, dtype)
        run = jax.jit(lambda at: apply(at, dtype=computed_in))
        return "jaxattn_norm" in run.lower(at).as_text()

    assert not calls(jnp.float32)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert calls(jnp.float32)
    assert calls(jnp.bfloat16)
    assert not calls(jnp.float16)
    assert not calls(jnp.float32, jnp.bfloat16)


def test_what_does_not_fit_is_refused():
    x = jnp.ones((2, 4, 4, 3))
    for keywords, message in (
        ({"residual": x[:, :2]}, r"residual=\(2, 2, 4, 3\): must be the shape"),
        ({"activation": "gelu"}, "activation='gelu': .* choices: relu, relu6"),
    ):
        with pytest.raises(ValueError, match=message):
            BatchNorm().init(jax.random.key(0), x, train=False, **keywords)
