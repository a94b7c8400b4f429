"""Parts of a network that do not learn: normalisations, and the first stages.

Both hold while the modules inside are called, whatever network they are of: their calls
are intercepted. What an attention module has of its own is left as it is.
"""

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxattn.ops.inputs import at_least_float32, computation_dtype
from jaxattn.ops.norm import ACTIVATIONS, BatchNorm

NORMS = ("batch", "running", "frozen")
"""How a network normalises by `BatchNorm`.

"batch": in training by the batch's statistics. "running": always by the running ones,
which stay; scale and bias learn, as MMDetection trains detectors. "frozen": and scale
and bias are no parameters, but stand beside the statistics, as torchvision's
`FrozenBatchNorm2d`.
"""


def normalizing(norm: str) -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which a network's norms are of a kind.

    Args:
        norm: One of `NORMS`.
    """

    def call(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if not _is_own_norm(context):
            return next_function(*args, **kwargs)
        if norm == "running":
            return next_function(*args, **kwargs | {"train": False})
        return _normalize(context.module, *args, **kwargs)

    return contextlib.nullcontext() if norm == "batch" else nn.intercept_methods(call)


def stopped() -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which modules have no gradient, and norms run."""

    def call(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, BatchNorm):
            kwargs = kwargs | {"train": False}
        outputs = next_function(*args, **kwargs)
        is_map = context.method_name == "__call__"
        return jax.lax.stop_gradient(outputs) if is_map else outputs

    return nn.intercept_methods(call)


def _is_own_norm(context: Any) -> bool:
    """Whether it is the call of a norm that is not an attention module's."""
    is_norm = isinstance(context.module, BatchNorm)
    is_attention = any("attn" in name for name in context.module.path)
    return is_norm and context.method_name == "__call__" and not is_attention


def _normalize(
    module: BatchNorm,
    x: jax.Array,
    *,
    train: bool,
    residual: jax.Array | None = None,
    activation: str | None = None,
) -> jax.Array:
    """Does as `BatchNorm` does by its running statistics, without parameters."""
    del train
    shape = x.shape[-1:]
    variable = lambda name, init: module.variable(  # noqa: E731
        "batch_stats", name, init, shape, jnp.float32
    ).value.reshape((1,) * (x.ndim - 1) + shape)
    scale, bias = variable("scale", jnp.ones), variable("bias", jnp.zeros)
    mean, var = variable("mean", jnp.zeros), variable("var", jnp.ones)
    factor = scale * jax.lax.rsqrt(var + module.epsilon)
    y = at_least_float32(x) * factor + (bias - mean * factor)
    y = y.astype(computation_dtype(x, module.dtype))
    y = y if residual is None else y + residual
    return y if activation is None else ACTIVATIONS[activation](y)
