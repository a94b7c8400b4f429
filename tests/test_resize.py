"""Resizing and adaptive pooling are PyTorch's, by arrays that it computed."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.ops import adaptive_avg_pool, resize_bilinear, resize_nearest

# Of float32 beside float32: torch sums in another order.
TOLERANCE = 1e-5


def nhwc(array):
    return np.moveaxis(array, 1, -1)


def value_and_gradient(operation, x, cotangent):
    """In one program, as in a training step."""
    value, pullback = jax.vjp(operation, x)
    return value, pullback(cotangent)[0]


def operation_of(case, shape):
    """What a case of the golden file is computed by, from its name."""
    if match := re.fullmatch(r"pool_\d+x\d+/k(\d+)", case):
        return functools.partial(adaptive_avg_pool, output_size=int(match[1]))
    mode = case.split("_")[0]
    resize = {"nearest": resize_nearest, "bilinear": resize_bilinear}[mode]
    if case.endswith("scale1.7_recompute0"):
        return functools.partial(resize, scale_factor=1.7)
    if case == "bilinear_from1x1":
        return lambda x: resize_bilinear(jnp.mean(x, (1, 2), keepdims=True), shape)
    corners = {"align_corners": True} if case.endswith("align1") else {}
    return functools.partial(resize, size=shape, **corners)


def test_resizing_and_pooling_are_torchs(golden):
    arrays = golden("dense/ops_resize")
    cases = [key.removesuffix("/output") for key in arrays if key.endswith("/output")]
    operations, inputs, expected = {}, {}, {}
    for case in cases:
        output = nhwc(arrays[f"{case}/output"])
        operations[case] = operation_of(case, output.shape[1:3])
        own = f"{case.split('/')[0]}/input"
        x = arrays[own] if own in arrays else arrays["input"]
        inputs[case] = nhwc(x), nhwc(arrays[f"{case}/cotangent"])
        expected[case] = output, nhwc(arrays[f"{case}/grad_input"])

    @jax.jit
    def compute(inputs):
        return {
            case: value_and_gradient(operations[case], *pair)
            for case, pair in inputs.items()
        }

    chex.assert_trees_all_close(
        compute(inputs), expected, rtol=TOLERANCE, atol=TOLERANCE
    )
    assert len(cases) == 35


@pytest.mark.parametrize("resize", [resize_nearest, resize_bilinear])
def test_gradients_have_no_scatter(resize):
    x = jnp.ones((1, 7, 9, 2))
    gradient = jax.grad(lambda x: jnp.sum(jnp.square(resize(x, (13, 20)))))
    program = str(jax.make_jaxpr(gradient)(x))
    assert "scatter" not in program
    assert "gather" not in program


def test_a_bfloat16_map_is_interpolated_in_float32():
    x = jax.random.normal(jax.random.key(0), (1, 5, 5, 3)).astype(jnp.bfloat16)
    actual = resize_bilinear(x, (12, 12))
    exact = resize_bilinear(x.astype(jnp.float32), (12, 12))
    assert actual.dtype == jnp.bfloat16
    # Rounded once, at the end.
    chex.assert_trees_all_equal(actual, exact.astype(jnp.bfloat16))


def test_a_map_of_the_size_wanted_stays_as_it_is():
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))
    chex.assert_trees_all_equal(resize_bilinear(x, (5, 7)), x)
    chex.assert_trees_all_equal(resize_nearest(x, (5, 7)), x)
