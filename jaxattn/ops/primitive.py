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


# Maxima -----------------------------------------------------------------------------


def make_choice(
    name: str, gather: Compute, scatter: Compute, shape: Callable[..., Shape]
) -> Callable[..., jax.Array]:
    """Returns the linear map `(v, x, window)` that picks from `v` by the values of `x`.

    `v` is a tangent of `x`.

    Args:
        name: Of the operation.
        gather: `(v, x, window)` to the picked values.
        scatter: `(g, x, window)` to the transpose: `g` at the places picked from.
        shape: `(v.shape, x.shape, window)` to the shape of what is picked.
    """
    forth = make_primitive(name, gather, shape, by_example=(True, True))
    back = make_primitive(
        f"{name}_transpose",
        scatter,
        lambda g, x, **_: x,  # noqa: ARG005
        by_example=(True, True),
    )
    for one, other in ((forth, back), (back, forth)):

        def along(
            v_dot: Any, v: Any, x: Any, *, one: Primitive = one, **params: Any
        ) -> Any:
            del v
            return one.bind(v_dot, x, **params)

        def transposed(
            g: Any, v: Any, x: Any, *, other: Primitive = other, **params: Any
        ) -> Any:
            if type(g) is ad.Zero:
                return ad.Zero(v.aval), None
            return other.bind(g, x, **params), None

        # Which place is picked changes only where two are equal.
        ad.defjvp(one, along, None)
        ad.primitive_transposes[one] = transposed
    return lambda v, x, window: forth.bind(v, x, window=window)
