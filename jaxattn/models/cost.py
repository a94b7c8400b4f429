"""What a network costs: parameters and multiply-accumulates."""

import collections
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from jaxattn.attention.canet import MultiKernelECA
from jaxattn.attention.eca import ECA, adaptive_kernel_size
from jaxattn.attention.ela import ELA
from jaxattn.attention.gather_excite import WholeMapConv
from jaxattn.attention.gc import PositionScores
from jaxattn.attention.mca import StripGate
from jaxattn.attention.scc import SCC
from jaxattn.attention.scsa import SCSA
from jaxattn.attention.srm import StyleRecalibration
from jaxattn.ops import cpu_kernels, resize


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a network costs.

    Convolutions and matrix products are counted as they are executed; normalisation,
    activations, pooling and other elementwise work are left out, as is usual. Blocks
    are counted as their authors define them, whatever executes them: `SCC` with a
    convolution for each branch, `SCSA` with the convolutions of its strips, its q, k
    and v, and both products of its attention; and those that add up shifted copies
    (ECA, ELA, MCA, SRM, GE, GC) with the convolutions that this stands for.

    Attributes:
        parameters: Trainable values.
        macs: Multiply-accumulates of one image in evaluation.
        theoretical_macs: The same with the largest convolution alone of every SCC, of
            which the others are parts: what its authors call the theoretical cost.
    """

    parameters: int
    macs: int
    theoretical_macs: int


def measure_cost(module: nn.Module, image_shape: tuple[int, int, int]) -> Cost:
    """Returns what a network costs, by tracing it; nothing is compiled or run.

    Args:
        module: The network, or a block.
        image_shape: `(H, W, C)` of the image or map.
    """
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables, blocks, unseen = _init_and_blocks(module, x)
    macs = theoretical_macs = _executed_macs(module, variables, x) + unseen
    for (block, shape, dtype), count in blocks.items():
        map_ = jax.ShapeDtypeStruct(shape, dtype)
        block_variables, *_ = _init_and_blocks(block, map_)
        executed = _executed_macs(block, block_variables, map_)
        formula = _FORMULAS[type(block)]
        macs += count * (formula(block, shape) - executed)
        theoretical = formula(block, shape, theoretical=True)
        theoretical_macs += count * (theoretical - executed)
    return Cost(count_parameters(variables["params"]), macs, theoretical_macs)


def count_parameters(params: Any) -> int:
    """Returns the number of trainable values in a parameter tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def summarize_model(module: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """Returns a table of the network's modules with shapes and parameters.

    Args:
        module: The network.
        image_shape: `(H, W, C)` of the image.
    """
    x = jnp.zeros((1, *image_shape))
    style = {"width": 160, "force_terminal": False}
    with warnings.catch_warnings():
        # Flax asks JAX for the dtype of Python integers among a method's arguments.
        warnings.filterwarnings("ignore", "Explicitly requested dtype int64")
        return module.tabulate(jax.random.key(0), x, depth=2, console_kwargs=style)


# What is executed ------------------------------------------------------------------


def _executed_macs(module: nn.Module, variables: Any, x: jax.ShapeDtypeStruct) -> int:
    # A function of its own: JAX would remember the trace for one that is not.
    apply = functools.partial(module.apply)
    with cpu_kernels.disabled():  # whose calls cannot be counted
        jaxpr = jax.make_jaxpr(apply)(variables, x)
    return sum(_equation_macs(eqn) for eqn in _equations(jaxpr.jaxpr))


def _equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Yields the primitive operations of a jaxpr and of those inside it.

    Interpolation is left out, as is usual: products compute it, and others none.
    """
    for eqn in jaxpr.eqns:
        if resize.SCOPE in str(eqn.source_info.name_stack):
            continue
        inner = [
            p
            for p in eqn.params.values()
            if isinstance(p, core.ClosedJaxpr | core.Jaxpr)
        ]
        # A platform's branch stands for all of them: they compute the same.
        inner += [eqn.params["branches"][0]] if "branches" in eqn.params else []
        if not inner:
            yield eqn
        for jaxpr_ in inner[:1]:
            is_closed = isinstance(jaxpr_, core.ClosedJaxpr)
            yield from _equations(jaxpr_.jaxpr if is_closed else jaxpr_)


def _equation_macs(eqn: core.JaxprEqn) -> int:
    name = eqn.primitive.name
    if name not in ("conv_general_dilated", "conv_output", "dot_general"):
        return 0
    outputs = math.prod(eqn.outvars[0].aval.shape)  # pyright: ignore
    left, right = (v.aval.shape for v in eqn.invars)  # pyright: ignore
    if name == "dot_general":
        contracted, _ = eqn.params["dimension_numbers"][0]
        return outputs * math.prod(left[axis] for axis in contracted)
    layout = eqn.params.get("dimension_numbers")
    out_axis = layout.rhs_spec[0] if layout else -1  # ours has its outputs last
    return outputs * math.prod(right) // right[out_axis]


# What the authors define -----------------------------------------------------------


def _init_and_blocks(
    module: nn.Module, x: jax.ShapeDtypeStruct
) -> tuple[Any, collections.Counter[tuple[Any, tuple[int, ...], Any]], int]:
    """Returns abstract variables, blocks that have a formula, and what is not seen.

    Blocks are counted by block, shape and dtype of their input. Not seen are
    convolutions that are executed as sums of shifted copies.
    """
    found, unseen = collections.Counter(), []

    def record(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        block = context.module
        if context.method_name == "__call__" and type(block) in _FORMULAS:
            alone = block.clone(parent=None, name=None)
            found[alone, args[0].shape, args[0].dtype] += 1
        if context.method_name == "__call__" and type(block) in _UNSEEN:
            unseen.append(_UNSEEN[type(block)](block, args[0].shape))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        # A function of its own: one that JAX has traced before would not be called.
        init = functools.partial(module.init, jax.random.key(0))
        return jax.eval_shape(init, x), found, sum(unseen)


def _scc_macs(block: SCC, shape: tuple[int, ...], theoretical: bool = False) -> int:
    _, H, W, C = shape
    positions = -(-H // block.stride) * -(-W // block.stride)
    r = block.kernel_size // 2
    sizes = [2 * i + 1 for i in range(r if theoretical else 0, r + 1)]
    taps = sum(size * size for size in sizes)
    return positions * block.features * (C // block.groups) * taps


def _scsa_macs(block: SCSA, shape: tuple[int, ...], theoretical: bool = False) -> int:
    del theoretical  # there is no other
    _, H, W, C = shape
    s = block.window_size
    tokens = 1 if s == -1 else (H // s) * (W // s)
    strips = C // 4 * sum(block.group_kernel_sizes) * (H + W)
    attention = 3 * C * tokens + 2 * C * (C // block.head_num) * tokens
    recombines = block.down_sample_mode == "recombination" and s != -1
    return strips + attention + (C * s * s * C * tokens if recombines else 0)


def _eca_macs(block: ECA, shape: tuple[int, ...]) -> int:
    C = shape[-1]
    return C * (block.kernel_size or adaptive_kernel_size(C, block.gamma, block.b))


def _multi_kernel_eca_macs(block: MultiKernelECA, shape: tuple[int, ...]) -> int:
    return sum(block.kernel_sizes) * shape[-1]


def _ela_macs(block: ELA, shape: tuple[int, ...]) -> int:
    _, H, W, C = shape
    is_depthwise = (block.conv_groups or C) == C  # others are executed as convolutions
    return block.kernel_size * C * (H + W) if is_depthwise else 0


def _mca_macs(block: StripGate, shape: tuple[int, ...]) -> int:
    return block.kernel_size * shape[1]


def _srm_macs(block: StyleRecalibration, shape: tuple[int, ...]) -> int:
    del block
    return 2 * shape[-1]


def _whole_map_macs(block: WholeMapConv, shape: tuple[int, ...]) -> int:
    del block
    return math.prod(shape)


def _scores_macs(block: PositionScores, shape: tuple[int, ...]) -> int:
    del block
    return 2 * math.prod(shape)  # and the mean that they weigh


# Of a block and the shape of its input, of one image.
_UNSEEN: dict[type[nn.Module], Callable[..., int]] = {
    ECA: _eca_macs,
    ELA: _ela_macs,
    MultiKernelECA: _multi_kernel_eca_macs,
    PositionScores: _scores_macs,
    StripGate: _mca_macs,
    StyleRecalibration: _srm_macs,
    WholeMapConv: _whole_map_macs,
}
_FORMULAS: dict[type[nn.Module], Callable[..., int]] = {
    SCC: _scc_macs,
    SCSA: _scsa_macs,
}
