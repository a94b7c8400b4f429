"""What a network costs: parameters and multiply-accumulates."""

import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core


def count_parameters(params: Any) -> int:
    """Returns the number of trainable values in a parameter tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def count_macs(module: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Returns the multiply-accumulates of one image in evaluation.

    Counts convolutions and matrix products as they are executed; normalisation,
    activations, pooling and other elementwise work are left out, as is usual.

    Args:
        module: The network.
        image_shape: `(H, W, C)` of the image.
    """
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    jaxpr = jax.make_jaxpr(module.apply)(variables, x)
    return sum(_equation_macs(eqn) for eqn in _equations(jaxpr.jaxpr))


def summarize_model(module: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """Returns a table of the network's modules with shapes and parameters.

    Args:
        module: The network.
        image_shape: `(H, W, C)` of the image.
    """
    x = jnp.zeros((1, *image_shape))
    style = {"width": 160, "force_terminal": False}
    table = module.tabulate(jax.random.key(0), x, depth=2, console_kwargs=style)
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    macs = count_macs(module, image_shape)
    return f"{count_parameters(params):,} parameters, {macs:,} MACs an image\n{table}"


def _equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Yields the primitive operations of a jaxpr and of those inside it."""
    for eqn in jaxpr.eqns:
        inner = [p for p in eqn.params.values() if isinstance(p, core.ClosedJaxpr)]
        # A platform's branch stands for all of them: they compute the same.
        inner += [eqn.params["branches"][0]] if "branches" in eqn.params else []
        if not inner:
            yield eqn
        for closed in inner[:1]:
            yield from _equations(closed.jaxpr)


def _equation_macs(eqn: core.JaxprEqn) -> int:
    if eqn.primitive.name not in ("conv_general_dilated", "dot_general"):
        return 0
    outputs = math.prod(eqn.outvars[0].aval.shape)  # pyright: ignore
    left, right = (v.aval.shape for v in eqn.invars)  # pyright: ignore
    if eqn.primitive.name == "dot_general":
        contracted, _ = eqn.params["dimension_numbers"][0]
        return outputs * math.prod(left[axis] for axis in contracted)
    out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
    return outputs * math.prod(right) // right[out_axis]
