"""Activations of whole maps, in fewer passes over memory than XLA on CPUs makes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxattn.ops import cpu_kernels
from jaxattn.ops.inputs import at_least_float32
from jaxattn.ops.primitive import Arrays, make_operation


def relu(x: jax.Array) -> jax.Array:
    """Returns max(x, 0), for the map that a convolution without bias has made.

    Where `cpu_kernels.is_enabled` it is one pass, and in place.
    XLA would keep the map beside the result, for the gradient, where it cannot compute
    it again. After a `BatchNorm` its keyword `activation` is better; after other
    operations of XLA's, with which it can be one, `jax.nn.relu`.

    Args:
        x: Array of any shape and float dtype.
    """
    is_fast = x.dtype in (jnp.float32, jnp.bfloat16) and cpu_kernels.is_enabled()
    return _relu(x, None)[0] if is_fast else nn.relu(x)


def _value(x: jax.Array, _: None) -> Arrays:
    return _call("jaxattn_relu", x)


def _gradient(operands: Arrays, outputs: Arrays, cotangents: Arrays, _: None) -> Arrays:
    del operands
    return _call("jaxattn_relu_gradient", *cotangents, *outputs)


def _call(name: str, *operands: jax.Array) -> Arrays:
    results = [jax.ShapeDtypeStruct(operands[0].shape, operands[0].dtype)]
    return cpu_kernels.call(name, results, *operands, in_place={0: 0})


_relu = make_operation(lambda x, _: (nn.relu(x),), _value, _gradient)


def sigmoid(x: jax.Array) -> jax.Array:
    """Returns 1 / (1 + exp(-x)) in the dtype of `x`, rounded once; of large gates.

    Operation by operation, bfloat16 takes XLA's CPU backend twice as long.

    Args:
        x: Array of any shape and float dtype.
    """
    wide = jnp.finfo(x.dtype).bits >= 32
    return nn.sigmoid(x) if wide else _rounded_sigmoid(x)


@jax.custom_jvp
def _rounded_sigmoid(x: jax.Array) -> jax.Array:
    return nn.sigmoid(at_least_float32(x)).astype(x.dtype)


@_rounded_sigmoid.defjvp
def _(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # Of the rounded result, which is kept anyway: not another map in float32.
    y = _rounded_sigmoid(*primals)
    s, x_dot = at_least_float32(y), at_least_float32(*tangents)
    return y, (x_dot * s * (1 - s)).astype(y.dtype)
