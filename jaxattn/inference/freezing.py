"""A network with its weights fixed: what depends on them alone is computed once.

`freeze` rewrites the traced program, not the modules, so it holds for any network, a
user's own included:
  - a convolution or matrix product whose output goes through a factor and an offset for
    each channel, and nowhere else, takes the factor into its kernel. That is batch
    normalisation in evaluation, whatever module it is written in;
  - what oneDNN can do in the same pass, it does: the offset, a sum with another map
    such as a residual, ReLU;
  - everything that weights alone decide leaves the program: factors, offsets, kernels
    cast to the computation dtype or packed for oneDNN.

The answers differ by rounding.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core
from jax.typing import DTypeLike

from jaxattn.ops import cpu_kernels, onednn_inference
from jaxattn.ops.onednn_inference import Closing

Program = Callable[[Any, Any], Any]

_NOTHING = Closing()
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr"}


def compile_network(
    fn: Program,
    variables: Any,
    *,
    fold_batch_norm: bool = True,
    place: Callable[[Any], Any] = jax.device_put,
) -> Callable[[Any], Any]:
    """Returns a compiled function of images alone.

    Args:
        fn: Pure function of variables and images.
        variables: Its weights.
        fold_batch_norm: Whether to `freeze` it, anew for each shape of the images.
        place: Puts arrays of the host on the devices.
    """
    cpu_kernels.prepare()
    if not fold_batch_norm:
        return functools.partial(jax.jit(fn), place(variables))
    programs: dict[Any, Callable[[Any], Any]] = {}

    def answer(images: Any) -> Any:
        key = images.shape, images.dtype
        if key not in programs:
            example = jax.ShapeDtypeStruct(*key)
            frozen, weights = freeze(fn, variables, example)
            placed = place(jax.device_get(weights))
            programs[key] = functools.partial(jax.jit(frozen), placed)
        return programs[key](images)

    return answer


def freeze(fn: Program, variables: Any, example: Any) -> tuple[Program, Any]:
    """Folds batch normalisation, and computes ahead what depends on the weights alone.

    Args:
        fn: Pure function of variables and images.
        variables: Its weights.
        example: Its images, or their shapes: those of every call.

    Returns:
        A function of weights and images that answers as `fn`, and its weights.
    """
    folded = _folded(fn)
    closed, shape = jax.make_jaxpr(folded, return_shape=True)(variables, example)
    jaxpr, leaves = closed.jaxpr, jax.tree.leaves(variables)
    given = [*jaxpr.constvars, *jaxpr.invars[: len(leaves)]]
    images = jaxpr.invars[len(leaves) :]
    ahead, rest, kept = _split(jaxpr, given)
    compute_ahead = jax.jit(_as_function(jaxpr, given, ahead, kept))
    compute_rest = _as_function(jaxpr, [*kept, *images], rest, jaxpr.outvars)

    def frozen(weights: Sequence[jax.Array], batch: Any) -> Any:
        outputs = compute_rest(*weights, *jax.tree.leaves(batch))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return frozen, compute_ahead(*closed.consts, *leaves)


# What is computed ahead --------------------------------------------------------------


def _split(jaxpr: Any, given: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Returns operations on what is given alone, the others, and what these need."""
    known, free = set(given), set()
    ahead, rest = [], []
    for eqn in jaxpr.eqns:
        operands = {v for v in eqn.invars if _is_variable(v)}
        if operands <= free:
            # Made from nothing, such as zeros: either side makes its own.
            free.update(eqn.outvars)
            ahead.append(eqn)
            rest.append(eqn)
        elif operands <= known | free and not _is_spread(eqn):
            known.update(eqn.outvars)
            ahead.append(eqn)
        else:
            rest.append(eqn)
    needed = [v for eqn in rest for v in eqn.invars] + jaxpr.outvars
    kept = dict.fromkeys(v for v in needed if _is_variable(v) and v in known)
    return ahead, rest, list(kept)


def _is_spread(eqn: Any) -> bool:
    """Whether its result repeats its operand: that takes memory and saves no time."""
    if eqn.primitive.name != "broadcast_in_dim":
        return False
    shape, operand = eqn.outvars[0].aval.shape, eqn.invars[0].aval
    # With a symbolic batch, for each image: how often is not known ahead.
    is_known = all(isinstance(side, int) for side in shape)
    return not is_known or eqn.outvars[0].aval.size > operand.size


def _as_function(
    jaxpr: Any, inputs: Sequence[Any], equations: Sequence[Any], outputs: Sequence[Any]
) -> Callable[..., Sequence[Any]]:
    """Returns some of a program's operations as a function."""
    part = jaxpr.replace(
        constvars=[], invars=[*inputs], outvars=[*outputs], eqns=[*equations]
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(part, ()))


def _bind(jaxpr: Any, eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Computes one operation of a program."""
    pairs = zip(eqn.invars, operands, strict=True)
    given = {v: value for v, value in pairs if _is_variable(v)}
    return _as_function(jaxpr, [*given], [eqn], eqn.outvars)(*given.values())


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, core.Literal)


# Folding -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Product:
    """A convolution or product, and what follows it; not computed yet.

        activation((conv(x, kernel) * factor + offset).astype(dtype) + other)

    Attributes:
        jaxpr: The program that it is of.
        eqn: The convolution or product; the last axis of its kernel is that of its
            output.
        operands: `x` and the kernel.
        dtype: Of the result.
        factor: `[O]` or a number; None is 1.
        offset: `[O]` or a number; None is 0.
        closing: What oneDNN does in the same pass.
    """

    jaxpr: Any
    eqn: Any
    operands: Sequence[jax.Array]
    dtype: DTypeLike
    factor: Any = None
    offset: Any = None
    closing: Closing = _NOTHING

    def compute(self) -> jax.Array:
        """Computes it."""
        x, kernel = self.operands
        if self.factor is not None:
            factor = _along_last_axis(self.factor, kernel)
            kernel = (kernel * factor).astype(kernel.dtype)
        if self.can_close:
            offset = 0 if self.offset is None else self.offset
            offset = jnp.broadcast_to(jnp.float32(offset), kernel.shape[-1:])
            window = self.eqn.params["window"]
            return onednn_inference.conv2d(x, kernel, offset, window, self.closing)
        (y,) = _bind(self.jaxpr, self.eqn, [x, kernel])
        if self.offset is not None:
            y = y + _along_last_axis(self.offset, y)
        return y.astype(self.dtype)

    @property
    def can_close(self) -> bool:
        """Whether more can be done in the same pass."""
        is_onednn = self.eqn.primitive.name == "onednn_conv_output"
        return is_onednn and self.dtype == self.operands[0].dtype

    @property
    def is_open(self) -> bool:
        """Whether nothing follows yet but factor and offset."""
        return self.closing.other is None and self.closing.activation is None

    def scaled(self, by: jax.Array) -> "_Product":
        """Returns it times a number for each channel."""
        factor = by if self.factor is None else self.factor * by
        offset = None if self.offset is None else self.offset * by
        return dataclasses.replace(self, factor=factor, offset=offset)

    def moved(self, by: jax.Array) -> "_Product":
        """Returns it plus a number for each channel."""
        offset = by if self.offset is None else self.offset + by
        return dataclasses.replace(self, offset=offset)

    def closed(self, **following: Any) -> "_Product":
        """Returns it with what follows."""
        closing = self.closing._replace(**following)
        return dataclasses.replace(self, closing=closing)


def _along_last_axis(value: Any, like: jax.Array) -> jax.Array:
    """Returns `[O]` or a number so that it can be combined with `[..., O]`."""
    ones = (1,) * (like.ndim - 1)
    return jnp.broadcast_to(value, like.shape[-1:]).reshape(*ones, -1)


def _folded(fn: Program) -> Program:
    """Returns the same function with factors of channels in the kernels before them."""

    def folded(variables: Any, batch: Any) -> Any:
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(variables, batch)
        leaves, images = jax.tree.leaves(variables), jax.tree.leaves(batch)
        known = [True] * len(leaves) + [False] * len(images)
        outputs, _ = _fold(closed, [*leaves, *images], known)
        outputs = [_computed(v) for v in outputs]
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return folded


def _fold(
    closed: Any, operands: Sequence[Any], known: Sequence[bool]
) -> tuple[list[Any], list[bool]]:
    """Computes a program, its products as late as can be.

    Args:
        closed: The program.
        operands: Its inputs, of which some may be a `_Product`.
        known: Which of them weights alone decide.

    Returns:
        The outputs, and which of them weights alone decide.
    """
    jaxpr = closed.jaxpr
    env = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env |= zip(jaxpr.invars, operands, strict=True)
    is_known = dict.fromkeys(jaxpr.constvars, True)
    is_known |= zip(jaxpr.invars, known, strict=True)
    atoms = [v for eqn in jaxpr.eqns for v in eqn.invars] + list(jaxpr.outvars)
    uses = Counter(v for v in atoms if _is_variable(v))

    def read(atom: Any) -> Any:
        value = env[atom] if _is_variable(atom) else atom.val
        if isinstance(value, _Product) and uses[atom] > 1:
            value = env[atom] = value.compute()
        return value

    for eqn in jaxpr.eqns:
        values = [read(v) for v in eqn.invars]
        flags = [not _is_variable(v) or is_known[v] for v in eqn.invars]
        if (inner := _called(eqn)) is not None:
            results, decided = _fold(inner, values, flags)
        else:
            product = _rewritten(jaxpr, eqn, values, flags)
            results = [product] if product else None
            results = results or _bind(jaxpr, eqn, [*map(_computed, values)])
            decided = [all(flags)] * len(eqn.outvars)
        env.update(zip(eqn.outvars, results, strict=True))
        is_known.update(zip(eqn.outvars, decided, strict=True))
    outputs = [read(v) for v in jaxpr.outvars]
    return outputs, [not _is_variable(v) or is_known[v] for v in jaxpr.outvars]


def _computed(value: Any) -> Any:
    return value.compute() if isinstance(value, _Product) else value


def _called(eqn: Any) -> Any:
    """Returns the program that an operation only calls; None if it does more."""
    key = _CALLS.get(eqn.primitive.name)
    return None if key is None else eqn.params[key]


def _rewritten(
    jaxpr: Any, eqn: Any, values: Sequence[Any], known: Sequence[bool]
) -> _Product | None:
    """Returns an operation's result as a product not yet computed, if it is one."""
    if _is_product(eqn) and known[1] and not known[0]:
        operands = [_computed(v) for v in values]
        return _Product(jaxpr, eqn, operands, eqn.outvars[0].aval.dtype)
    place = next((i for i, v in enumerate(values) if isinstance(v, _Product)), None)
    if place is None:
        return None
    name, product, others = eqn.primitive.name, values[place], [*values]
    del others[place]
    if name == "convert_element_type":
        return _cast(product, eqn.params["new_dtype"])
    if name in ("max", "min"):
        return _clipped(product, name, others[0])
    if name not in ("add", "sub", "mul") or (name == "sub" and place == 1):
        return None
    (other,), shape = others, eqn.outvars[0].aval.shape
    shapes = [atom.aval.shape for atom in eqn.invars]
    if shapes[place] != shape:
        return None
    if known[1 - place] and _is_of_channels(other):
        return _moved(product, name, other)
    return _sum(product, other) if name == "add" and shapes == [shape, shape] else None


def _cast(product: _Product, dtype: DTypeLike) -> _Product | None:
    if not product.is_open or not jnp.issubdtype(dtype, jnp.floating):
        return None
    return dataclasses.replace(product, dtype=dtype)


def _moved(product: _Product, name: str, other: Any) -> _Product | None:
    if not product.is_open:
        return None
    other = jnp.reshape(other, -1) if jnp.ndim(other) else other
    if name == "mul":
        return product.scaled(other)
    return product.moved(-other if name == "sub" else other)


def _sum(product: _Product, other: Any) -> _Product | None:
    """Returns the sum with a map of the same shape."""
    if not product.is_open or not product.can_close:
        return None
    return product.closed(other=_computed(other))


def _clipped(product: _Product, name: str, bound: Any) -> _Product | None:
    if not product.can_close or isinstance(bound, Tracer | _Product):
        return None
    if np.ndim(bound):
        return None
    step = (product.closing.activation, name, float(bound))
    known = {(None, "max", 0.0): "relu", ("relu", "min", 6.0): "relu6"}
    return product.closed(activation=known[step]) if step in known else None


def _is_of_channels(value: Any) -> bool:
    """Whether a value is one for each place of the last axis, or for all."""
    return set(jnp.shape(value)[:-1]) <= {1}


def _is_product(eqn: Any) -> bool:
    """Whether it is linear in a kernel whose last axis is the last of the output."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        x, kernel = (v.aval.ndim for v in eqn.invars)
        last_with_first = (((x - 1,), (0,)), ((), ()))
        return kernel == 2 and params["dimension_numbers"] == last_with_first
    if name == "conv_general_dilated":
        numbers, last = params["dimension_numbers"], eqn.invars[0].aval.ndim - 1
        is_last = numbers.rhs_spec[0] == numbers.out_spec[1] == last
        return is_last and params["batch_group_count"] == 1
    return name in ("conv_output", "onednn_conv_output")
