"""The ReLU, in one pass over memory and in place where `cpu_kernels.is_enabled`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxattn.ops import cpu_kernels
from jaxattn.ops.primitive import Arrays, make_operation


def relu(x: jax.Array) -> jax.Array:
    """Returns max(x, 0), for the map that a convolution without bias has made.

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
