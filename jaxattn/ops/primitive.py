"""Operations of JAX whose derivatives we choose, to any order and in both directions.

`jax.custom_vjp` knows the first derivative, backwards, and no other; `jax.custom_jvp`
does not let a transpose be chosen. A primitive lets both, if its derivatives are
primitives of the kind, too.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Compute = Callable[..., jax.Array]
Shape = tuple[int, ...]


class Window(NamedTuple):
    """How a kernel moves over a feature map; see `jaxattn.ops.conv.conv2d`."""

    stride: int
    padding: int
    dilation: int = 1
    groups: int = 1


def make_primitive(
    name: str,
    compute: Compute,
    shape: Callable[..., Shape],
    *,
    by_example: tuple[bool, bool] | None = None,
    one_by_one: bool = False,
) -> Primitive:
    """Returns an operation of two arrays, without derivatives.

    Args:
        name: Of the operation.
        compute: `(a, b, **params)`, hashable parameters, to the result, which has the
            dtype of `a`.
        shape: `(a.shape, b.shape, **params)` to that of the result.
        by_example: Which of the two have examples along their first axis, as then has
            the result; what is mapped over these alone is computed as a larger batch.
            None: the result has no such axis.
        one_by_one: Whether `compute` cannot be mapped: then the rest is a loop.
    """
    primitive = Primitive(name)

    @primitive.def_abstract_eval
    def _(a: Any, b: Any, **params: Any) -> Any:
        return a.update(shape=shape(a.shape, b.shape, **params), weak_type=False)

    @functools.partial(jax.jit, static_argnames="params")
    def compiled(a: jax.Array, b: jax.Array, params: Any) -> jax.Array:
        return compute(a, b, **dict(params))

    primitive.def_impl(lambda a, b, **params: compiled(a, b, tuple(params.items())))
    lowering = mlir.lower_fun(compute, multiple_results=False)
    mlir.register_lowering(primitive, lowering)

    def batch(
        operands: Sequence[jax.Array], axes: Sequence[int | None], **params: Any
    ) -> tuple[jax.Array, int]:
        a, b = (
            a if i is None else jnp.moveaxis(a, i, 0)
            for a, i in zip(operands, axes, strict=True)
        )
        is_mapped = tuple(i is not None for i in axes)
        count = len(a) if is_mapped[0] else len(b)
        if by_example and all(
            has or not mapped for has, mapped in zip(by_example, is_mapped, strict=True)
        ):
            a, b = (
                _one_batch(v, mapped, count) if has else v
                for v, mapped, has in zip((a, b), is_mapped, by_example, strict=True)
            )
            y = primitive.bind(a, b, **params)
            return y.reshape(count, len(y) // count, *y.shape[1:]), 0
        if one_by_one:
            pick = lambda v, mapped, i: v[i] if mapped else v  # noqa: E731
            return jax.lax.map(
                lambda i: primitive.bind(
                    pick(a, is_mapped[0], i), pick(b, is_mapped[1], i), **params
                ),
                jnp.arange(count),
            ), 0
        in_axes = tuple(0 if mapped else None for mapped in is_mapped)
        return jax.vmap(lambda a, b: compute(a, b, **params), in_axes)(a, b), 0

    batching.primitive_batchers[primitive] = batch
    return primitive


def _one_batch(v: jax.Array, is_mapped: bool, count: int) -> jax.Array:
    """Returns a mapped array with its examples along one axis."""
    v = v if is_mapped else jnp.broadcast_to(v, (count, *v.shape))
    return v.reshape(v.shape[0] * v.shape[1], *v.shape[2:])


def _alike(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns two operands of which none is a tangent of the other.

    Under `jax.shard_map` operands of a primitive must vary along the same axes, which a
    selection makes them do.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return a, b
    return _varying_as(a, b), _varying_as(b, a)


def _varying_as(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `a`; it may differ between devices if `b` may."""
    other = jax.lax.stop_gradient(b).reshape(-1)[0].astype(a.dtype)
    return jnp.where(True, a, jnp.broadcast_to(other, a.shape))


# Convolutions -----------------------------------------------------------------------


def make_convolution(
    name: str,
    output: Compute,
    input_gradient: Compute,
    kernel_gradient: Compute,
    *,
    one_by_one: bool = False,
) -> Callable[[jax.Array, jax.Array, Window], jax.Array]:
    """Returns the convolution `(x, kernel, window)` that has these formulations.

    `sum(conv(x, kernel) * g)` is linear in `x`, `kernel` and `g`. Its derivative with
    respect to one of them is a bilinear map of the other two, so each of the three maps
    has the other two as derivatives, in every order.

    Args:
        name: Of the operation.
        output: `(x, kernel, window)` to `y`.
        input_gradient: `(kernel, g, window, size)` to the gradient of `x`, of height
            and width `size`.
        kernel_gradient: `(x, g, window, size)` to the gradient of the kernel, of height
            and width `size`.
        one_by_one: See `make_primitive`.
    """
    to_output = make_primitive(
        f"{name}_output",
        output,
        output_shape,
        by_example=(True, False),
        one_by_one=one_by_one,
    )
    to_input = make_primitive(
        f"{name}_input_gradient",
        input_gradient,
        lambda kernel, g, window, size: (g[0], *size, kernel[2] * window.groups),
        by_example=(False, True),
        one_by_one=one_by_one,
    )
    to_kernel = make_primitive(
        f"{name}_kernel_gradient",
        kernel_gradient,
        lambda x, g, window, size: (*size, x[3] // window.groups, g[3]),
        one_by_one=one_by_one,
    )

    def sides(array: Any) -> tuple[int, int]:
        return array.aval.shape[1:3]

    def taps(kernel: Any) -> tuple[int, int]:
        return kernel.aval.shape[:2]

    # Each with the gradient of its first and of its second operand.
    ad.defbilinear(
        to_output,
        lambda g, x, kernel, window: to_input.bind(
            kernel, g, window=window, size=sides(x)
        ),
        lambda g, x, kernel, window: to_kernel.bind(
            x, g, window=window, size=taps(kernel)
        ),
    )
    ad.defbilinear(
        to_input,
        lambda dx, kernel, g, window, size: to_kernel.bind(  # noqa: ARG005
            dx, g, window=window, size=taps(kernel)
        ),
        lambda dx, kernel, g, window, size: to_output.bind(  # noqa: ARG005
            dx, kernel, window=window
        ),
    )
    ad.defbilinear(
        to_kernel,
        lambda dkernel, x, g, window, size: to_input.bind(  # noqa: ARG005
            dkernel, g, window=window, size=sides(x)
        ),
        lambda dkernel, x, g, window, size: to_output.bind(  # noqa: ARG005
            x, dkernel, window=window
        ),
    )
    return lambda x, kernel, window: to_output.bind(*_alike(x, kernel), window=window)


def output_shape(x: Shape, kernel: Shape, window: Window) -> Shape:
    """Returns the shape of a convolution's output, from those of its operands."""
    stride, padding, dilation, _ = window
    sides = (
        (n + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for n, k in zip(x[1:3], kernel[:2], strict=True)
    )
    return (x[0], *sides, kernel[3])


# Formulas ---------------------------------------------------------------------------

Arrays = Sequence[jax.Array]
Formula = Callable[..., Arrays]  # `(*operands, params)` to outputs


def make_operation(
    formula: Formula,
    value: Formula,
    gradient: Callable[[Arrays, Arrays, Arrays, Any], Arrays],
) -> Formula:
    """Returns a formula's operation, of which values and gradients are computed apart.

    All its other derivatives are the formula's: those forwards, and of gradients again.

    Args:
        formula: `(*operands, params)` to a tuple of outputs, in operations of JAX.
            Operands and outputs are float arrays, `params` is hashable.
        value: Computes the same; what can be mapped by `jax.vmap`.
        gradient: `(operands, outputs, cotangents, params)`, cotangents of the outputs,
            to those of the operands; what can be mapped, too.
    """

    def tangents(
        operands: Arrays, outputs: Arrays, directions: Arrays, params: Any
    ) -> Arrays:
        del outputs
        return jax.jvp(_at(formula, params), (*operands,), (*directions,))[1]

    def cotangents(
        operands: Arrays, outputs: Arrays, directions: Arrays, params: Any
    ) -> Arrays:
        del outputs
        return jax.vjp(_at(formula, params), *operands)[1]((*directions,))

    forwards = _Linear(tangents, tangents, False)
    backwards = _Linear(gradient, cotangents, True)

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def operation(params: Any, *operands: jax.Array) -> Arrays:
        return (*value(*operands, params),)

    @operation.defjvp
    def _(params: Any, operands: Arrays, operands_dot: Arrays) -> tuple[Arrays, Arrays]:
        outputs = operation(params, *operands)
        outputs_dot = _linear.bind(
            *(*operands, *outputs, *operands_dot),
            count=len(operands),
            ways=(forwards, backwards),
            params=params,
        )
        return outputs, (*outputs_dot,)

    return lambda *arguments: operation(arguments[-1], *arguments[:-1])


class _Linear(NamedTuple):
    """A linear map: a derivative's, or its transpose.

    Both functions are `(operands, outputs, directions, params)` to the results.

    Attributes:
        compute: What is computed.
        formula: The same as a formula of the operands, to be derived.
        is_gradient: Whether it goes from outputs to operands.
    """

    compute: Callable[..., Arrays]
    formula: Callable[..., Arrays]
    is_gradient: bool


def _at(formula: Formula, params: Any) -> Formula:
    return lambda *operands: (*formula(*operands, params),)


# `(*operands, *outputs, *directions)` to what the first of two `ways`, which are each
# other's transpose, makes of the directions; `count` is the number of operands.
_linear = Primitive("linear_of_formula")
_linear.multiple_results = True

Ways = tuple[_Linear, _Linear]


def _parts(leaves: Sequence[Any], count: int, way: _Linear) -> tuple[Any, Any, Any]:
    """Returns operands, outputs and directions."""
    given = count if not way.is_gradient else (len(leaves) - count) // 2
    end = len(leaves) - given
    return leaves[:count], leaves[count:end], leaves[end:]


def _compute(*leaves: jax.Array, count: int, ways: Ways, params: Any) -> list[Any]:
    return [*ways[0].compute(*_parts(leaves, count, ways[0]), params)]


@_linear.def_abstract_eval
def _(*avals: Any, count: int, ways: Ways, params: Any) -> Any:
    del params
    operands, outputs, _ = _parts(avals, count, ways[0])
    return [v.strip_weak_type() for v in (operands if ways[0].is_gradient else outputs)]


@functools.partial(jax.jit, static_argnames=("count", "ways", "params"))
def _compiled(*leaves: jax.Array, **params: Any) -> list[Any]:
    return _compute(*leaves, **params)


_linear.def_impl(_compiled)
mlir.register_lowering(_linear, mlir.lower_fun(_compute, multiple_results=True))


def _linear_jvp(
    leaves: Sequence[Any],
    leaves_dot: Sequence[Any],
    count: int,
    ways: Ways,
    params: Any,
) -> tuple[Any, Any]:
    bound = functools.partial(_linear.bind, count=count, ways=ways, params=params)
    parts = _parts(leaves, count, ways[0])
    operands, outputs, directions = parts
    operands_dot, _, directions_dot = _parts(leaves_dot, count, ways[0])
    results = bound(*leaves)
    # Outputs are functions of the operands, as which the formula knows them.
    terms = []
    if any(type(dot) is not ad.Zero for dot in directions_dot):
        dots = map(ad.instantiate_zeros, directions_dot)
        terms.append(bound(*operands, *outputs, *dots))
    if any(type(dot) is not ad.Zero for dot in operands_dot):
        dots = tuple(map(ad.instantiate_zeros, operands_dot))
        of_operands = lambda *operands: [  # noqa: E731
            *ways[0].formula(operands, outputs, directions, params)
        ]
        terms.append(jax.jvp(of_operands, (*operands,), dots)[1])
    if not terms:
        return results, [jnp.zeros_like(v) for v in results]
    return results, [sum(dots[1:], dots[0]) for dots in zip(*terms, strict=True)]


def _linear_transpose(
    cotangents: Sequence[Any], *leaves: Any, count: int, ways: Ways, params: Any
) -> list[Any]:
    operands, outputs, directions = _parts(leaves, count, ways[0])
    back = _linear.bind(
        *(*operands, *outputs, *map(ad.instantiate_zeros, cotangents)),
        count=count,
        ways=ways[::-1],
        params=params,
    )
    # A direction of zeros may be known.
    back = [
        v if ad.is_undefined_primal(direction) else None
        for v, direction in zip(back, directions, strict=True)
    ]
    return [None] * (len(operands) + len(outputs)) + back


def _linear_batch(
    leaves: Arrays, axes: Sequence[int | None], **params: Any
) -> tuple[Any, Any]:
    results = jax.vmap(functools.partial(_compute, **params), axes)(*leaves)
    return results, [0] * len(results)


ad.primitive_jvps[_linear] = _linear_jvp
ad.primitive_transposes[_linear] = _linear_transpose
batching.primitive_batchers[_linear] = _linear_batch
