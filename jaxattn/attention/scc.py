"""SCC: a convolution whose kernel sizes compete for every output element.

No paper. Reference code read: Raven-Z-china/SCCNet @3d2a535, model/SCCNet.py, and the
code block of its earlier README (numbers compared in tests/test_scc.py)

Notation: N batch, H, W spatial, C channels, K kernel size, r = K // 2; branch i of
0..r convolves with the centred (2i+1) x (2i+1) window of the one K x K kernel.
Deviations from the code:
  - with groups the kernel has C_in / groups inputs (the code's C_in is an error there);
  - the code decides step by step which elements are forced; one uniform number an
    element gives the same distribution;
  - evaluation draws nothing, and probabilities that the code cannot honour are errors.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxattn.errors import require
from jaxattn.ops.conv import conv2d
from jaxattn.ops.inputs import as_feature_map, at_least_float32
from jaxattn.ops.random import hashed_uniform


def uniform_within(bound: float) -> Initializer:
    """Returns an initialiser that draws uniformly from [-bound, bound).

    Args:
        bound: Largest absolute value.
    """

    def init(
        key: jax.Array,
        shape: Sequence[int],
        dtype: Any = float,
        out_sharding: Any = None,
    ) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class SCC(nn.Module):
    """A convolution that gives every output element the size that responds most.

        s_i = conv(x, centre_i(kernel)) + bias_i                     i = 0..r
        out = s_b * (1 + tanh(alpha_b)) + beta_b,  b = first argmax_i s_i

    Each element of the output (image, position and channel) has its own winner b. In
    training a small share of the elements is forced to branches drawn at random, so
    that no branch starves. The maps s_i are compared in float32; at a lower computation
    dtype each is first rounded to it, by the convolution.

    `winner`, sown in `intermediates`, is b: uint8, the shape of the output.

    Attributes:
        features: Output channels, a multiple of `groups`.
        kernel_size: Side of the largest branch, odd; 1 is one branch, no competition.
        stride: Step along H and W.
        dilation: Distance between the taps of the kernel.
        groups: Groups of channels that do not see each other.
        mask_prob: Probability p that training forces an element to branch 0; at most
            1 / (r + 1) under the rule "uniform".
        forcing: Rule for the other branches: "uniform", each with probability p, or
            "constant", branch i with p * (1 - p)**i, as the code's README has it.
        kernel_init: Initialiser of the kernel.
        affine_init: Initialiser of bias, alpha and beta.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    mask_prob: float = 0.005
    forcing: str = "uniform"
    kernel_init: Initializer = uniform_within(0.2)
    affine_init: Initializer = uniform_within(2.0)
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, forced: jax.Array | None = None
    ) -> jax.Array:
        """Convolves and selects.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Draws which elements are forced, by the rng stream "forcing", unless
                `mask_prob` is 0 or `forced` is given.
            forced: Forces these branches, in evaluation too: int
                `[N, H', W', features]` in 0..r, or -1 where the branches compete.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, in `dtype`.

        Raises:
            ValueError: If an attribute is out of its range, or `forced` is not of the
                output's shape.
        """
        x = as_feature_map(self, x)
        self._check(x.shape[-1])
        N, H, W, C = x.shape
        K, O = self.kernel_size, self.features  # noqa: E741
        shape = (N, -(-H // self.stride), -(-W // self.stride), O)
        kernel = self.param(
            "kernel", self.kernel_init, (K, K, C // self.groups, O), jnp.float32
        )
        bias = self._rows("bias", (K // 2 + 1, O))
        alpha = self._rows("alpha", (K // 2 + 1, O, 1, 1))
        beta = self._rows("beta", (K // 2 + 1, O, 1, 1))
        if forced is None and train and self.mask_prob > 0:
            forced = self._draw(shape)
        if forced is not None and forced.shape != shape:
            raise ValueError(f"SCC: forced of shape {forced.shape}: must be {shape}")
        window = _Window(self.stride, self.dilation, self.groups)
        out, winner = _compete(x, kernel, bias, alpha, beta, forced, window)
        self.sow("intermediates", "winner", winner)
        return out

    def _check(self, channels: int) -> None:
        for key in ("features", "stride", "dilation", "groups"):
            require(key, getattr(self, key), getattr(self, key) >= 1, "at least 1")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(
                f"SCC: kernel_size={self.kernel_size}: must be odd and positive"
            )
        if channels % self.groups or self.features % self.groups:
            raise ValueError(
                f"SCC: groups={self.groups}: must divide the {channels} input channels"
                f" and features={self.features}"
            )
        if self.forcing not in ("uniform", "constant"):
            raise ValueError(
                f"SCC: forcing={self.forcing!r}: must be 'uniform' or 'constant'"
            )
        branches = self.kernel_size // 2 + 1
        most = 1 / branches if self.forcing == "uniform" else 1
        if not 0 <= self.mask_prob <= most:
            raise ValueError(
                f"SCC: mask_prob={self.mask_prob}: must be in [0, {most:.4g}] for"
                f" kernel_size={self.kernel_size} and forcing={self.forcing!r}"
            )

    def _rows(self, name: str, shape: tuple[int, ...]) -> jax.Array:
        """Returns a parameter as `[r + 1, 1, 1, 1, features]`."""
        value = self.param(name, self.affine_init, shape, jnp.float32)
        return value.reshape(-1, 1, 1, 1, self.features)

    def _draw(self, shape: tuple[int, ...]) -> jax.Array:
        """Draws for every element the branch it is forced to, or -1."""
        p, branches = self.mask_prob, range(1, self.kernel_size // 2 + 2)
        if self.forcing == "uniform":
            bounds = [i * p for i in branches]
        else:
            bounds = [1 - (1 - p) ** i for i in branches]
        u = hashed_uniform(self.make_rng("forcing"), shape)
        passed = sum((u >= bound).astype(jnp.int32) for bound in bounds)
        return jnp.where(passed < len(bounds), passed, -1)


class _Window(NamedTuple):
    """How a kernel moves over the feature map."""

    stride: int
    dilation: int
    groups: int


def _branch(x: jax.Array, kernel: jax.Array, i: int, window: _Window) -> jax.Array:
    """The convolution of branch i, without its bias, in the dtype of `x`."""
    r = kernel.shape[0] // 2
    centre = kernel[r - i : r + i + 1, r - i : r + i + 1]
    return conv2d(
        x,
        centre.astype(x.dtype),
        stride=window.stride,
        padding=i * window.dilation,
        dilation=window.dilation if i else 1,
        groups=window.groups,
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(6,))
def _compete(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    alpha: jax.Array,
    beta: jax.Array,
    forced: jax.Array | None,
    window: _Window,
) -> tuple[jax.Array, jax.Array]:
    """Returns the output and the winning branch of every element."""
    return _select(x, kernel, bias, alpha, beta, forced, window)[:2]


def _select(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    alpha: jax.Array,
    beta: jax.Array,
    forced: jax.Array | None,
    window: _Window,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the output, the winning branch and the winner's value."""
    maps = [
        at_least_float32(_branch(x, kernel, i, window)) + bias[i]
        for i in range(len(bias))
    ]
    value, winner = maps[0], jnp.zeros(maps[0].shape, jnp.uint8)
    for i, challenger in enumerate(maps[1:], 1):
        # Strictly greater: of equals the smaller branch wins, as in the code.
        wins = challenger > value
        if forced is not None:
            wins = jnp.where(forced < 0, wins, forced == i)
        value = jnp.where(wins, challenger, value)
        winner = jnp.where(wins, jnp.uint8(i), winner)
    gain, offset = _by_winner(1 + jnp.tanh(alpha), winner), _by_winner(beta, winner)
    return (value * gain + offset).astype(x.dtype), winner, value


def _compete_jvp(
    window: _Window, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Value and derivative, of which the gradient keeps few arrays and takes few sums.

    Autodiff of `_select` would sum over a map once more for each bias: here the sums
    for `beta` serve both. The winner's value is kept in the dtype of `x`.
    """
    x, kernel, bias, alpha, beta, forced = primals
    out, winner, value = _select(x, kernel, bias, alpha, beta, forced, window)
    x_dot, kernel_dot, bias_dot, alpha_dot, beta_dot, _ = tangents
    bias_dot, alpha_dot, beta_dot = (
        jnp.zeros_like(alpha) if _is_zero(t) else t
        for t in (bias_dot, alpha_dot, beta_dot)
    )
    tanh = jnp.tanh(alpha)
    value = at_least_float32(value.astype(x.dtype))
    out_dot = _sum_of_winners(beta_dot + (1 + tanh) * bias_dot, winner)
    gain_dot = (1 - jnp.square(tanh)) * alpha_dot
    out_dot += value * _sum_of_winners(gain_dot, winner)
    given = {"x": (x, x_dot), "kernel": (kernel, kernel_dot)}
    moved = {key: pair for key, pair in given.items() if not _is_zero(pair[1])}
    if moved:
        at, along = ({key: pair[j] for key, pair in moved.items()} for j in (0, 1))

        def branch(moved: dict[str, jax.Array], i: int) -> jax.Array:
            operands = {"x": x, "kernel": kernel} | moved
            return at_least_float32(_branch(**operands, i=i, window=window))

        maps_dot = [
            jax.jvp(functools.partial(branch, i=i), (at,), (along,))[1]
            for i in range(len(alpha))
        ]
        gain = _by_winner(1 + tanh, winner)
        out_dot += gain * _sum_of_winners(maps_dot, winner)
    none = SymbolicZero(jax.typeof(winner).to_tangent_aval())
    return (out, winner), (out_dot.astype(out.dtype), none)


_compete.defjvp(_compete_jvp, symbolic_zeros=True)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _sum_of_winners(maps: Sequence[jax.Array] | jax.Array, winner: jax.Array) -> Any:
    """Each element's winner of the maps, in a form whose transpose is a select."""
    zero = jnp.zeros((), maps[0].dtype)
    return sum(jnp.where(winner == i, maps[i], zero) for i in range(len(maps)))


def _by_winner(rows: jax.Array, winner: jax.Array) -> jax.Array:
    """`[r + 1, 1, 1, 1, C]` at each element's winner, as selects that XLA fuses."""
    chosen = rows[0]
    for i in range(1, len(rows)):
        chosen = jnp.where(winner == i, rows[i], chosen)
    return chosen
