"""Spatial and Channel Synergistic Attention (SCSA).

Si, Xu, Zhu, Zhang, Dong, Chen, Li, "SCSA: Exploring the Synergistic Effects Between
Spatial and Channel Attention", Neurocomputing 634, 2025.
https://arxiv.org/abs/2407.05128
Reference code read: HZAI-ZJNU/SCSA, mmpretrain/models/attentions/SCSA.py
(numbers compared in tests/test_scsa.py)

Notation: N batch, H, W spatial, C channels, L length of a strip (H or W), K taps,
T tokens (windows of the map), h heads of d channels.
Deviations from the code:
  - `recombination` works: the code calls a function that it does not define. Windows
    go to channels in the order of pixel-unshuffle (c * window^2 + row * window + col);
  - mistakes that the code meets late, or not at all, are named (see `Raises`);
  - the mean over tokens is taken of V before the attention instead of after it, which
    is the same: attention mixes channels, not tokens.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxattn.errors import choose, require
from jaxattn.ops.conv import ConvKernel, conv2d
from jaxattn.ops.group_norm import GroupNorm
from jaxattn.ops.init import torch_bias, torch_kernel
from jaxattn.ops.inputs import as_feature_map, at_least_float32
from jaxattn.ops.pool import max_along

_STRIP_CONVS = ("local_dwc", "global_dwc_s", "global_dwc_m", "global_dwc_l")
_DOWN_SAMPLE_MODES = ("avg_pool", "max_pool", "recombination")
_GATES: dict[str, Callable[..., jax.Array]] = {
    "sigmoid": lambda x, axis: nn.sigmoid(x),  # noqa: ARG005
    "softmax": nn.softmax,
}


class StripTaps(nn.Module):
    """The parameters of a depthwise 1-D convolution, its kernel zero-padded.

    Attributes:
        features: Channels.
        kernel_size: Taps, odd.
        padded_size: Taps with the zeros, odd.
    """

    features: int
    kernel_size: int
    padded_size: int

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Returns taps `[padded_size, features]` and bias `[features]`, float32."""
        k, C = self.kernel_size, self.features
        kernel = self.param("kernel", torch_kernel, (k, 1, C), jnp.float32)
        bias = self.param("bias", torch_bias(k), (C,), jnp.float32)
        margin = (self.padded_size - k) // 2
        return jnp.pad(kernel.reshape(k, C), ((margin, margin), (0, 0))), bias


class ChannelScale(nn.Module):
    """A factor, and a bias if wanted, for every channel: a depthwise 1x1 convolution.

    Attributes:
        use_bias: Adds a bias per channel.
        kernel_init: Initialiser of the factors.
        bias_init: Initialiser of the biases.
    """

    use_bias: bool = False
    kernel_init: Initializer = torch_kernel
    bias_init: Initializer = torch_bias(1)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales `x` `[..., C]`; same shape and dtype."""
        C, ones = x.shape[-1], (1,) * (x.ndim - 1)
        kernel = self.param("kernel", self.kernel_init, (1, 1, 1, C), jnp.float32)
        y = x * kernel.astype(x.dtype).reshape(*ones, C)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (C,), jnp.float32)
            y = y + bias.astype(x.dtype).reshape(*ones, C)
        return y


class SCSA(nn.Module):
    """Scales positions by gates from strips, then channels by self-attention.

        x' = x * gate(GN(conv(mean_w(x)))) * gate(GN(conv(mean_h(x))))
        y = GN(down_sample(x')),  tokens of C channels
        out = x' * gate(mean_t(softmax(q k^T / sqrt(d)) v)),  q, k, v = w_{q,k,v} * y

    Four groups of channels have a kernel size each, shared by both strips. The
    attention is of channels to channels.

    Attributes:
        head_num: Heads; the channels of a head attend to each other only.
        window_size: Side of the windows that become tokens, at most H and W; -1 is one
            window as large as the map, averaged whatever `down_sample_mode` says.
        group_kernel_sizes: Taps of the four groups' convolutions, odd.
        down_sample_mode: What becomes of a window: "avg_pool", "max_pool", or
            "recombination", a learned linear map of all its values. Pooling leaves out
            the rows and columns that do not fill a window.
        gate_layer: "sigmoid"; or "softmax" over a strip and over the channels, which
            shrinks the output about H * W * C times.
        qkv_bias: Adds a bias to q, k and v.
        attn_drop_ratio: Share of the attention that training sets to 0, by the rng
            stream "dropout"; in [0, 1).
        kernel_init: Initialiser of q, k, v and `conv_d`, the recombination.
        bias_init: Initialiser of the biases of q, k and v.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as
            are strips, normalisations and softmax.
    """

    head_num: int = 1
    window_size: int = 7
    group_kernel_sizes: Sequence[int] = (3, 5, 7, 9)
    down_sample_mode: str = "avg_pool"
    gate_layer: str = "sigmoid"
    qkv_bias: bool = False
    attn_drop_ratio: float = 0.0
    kernel_init: Initializer = torch_kernel
    bias_init: Initializer = torch_bias(1)
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies both gates.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype; C a multiple of 4 and of
                `head_num`.
            train: Selects dropout of the attention.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            ValueError: If an attribute is not as described above, H or W is less than
                the window, or "recombination" does not divide H and W into windows.
        """
        x = as_feature_map(self, x)
        self._check(x.shape)
        spatial = self._spatial_gate(x)
        channel = self._channel_gate(x * spatial, train)
        self.sow("intermediates", "channel_gate", channel)
        # Small gates first: the map is multiplied once, and is all that the gradient
        # keeps at full size.
        return x * (spatial * channel)

    def _spatial_gate(self, x: jax.Array) -> jax.Array:
        """Returns the product of the gates of both strips `[N, H, W, C]`."""
        N, H, W, C = x.shape
        taps, bias = self._strip_taps(C)
        K = len(taps)
        rows, columns = (jnp.mean(at_least_float32(x), axis) for axis in (2, 1))
        zeros = jnp.zeros((N, K // 2, C), rows.dtype)
        # Shift and add, both strips as one: K // 2 zeros keep them apart. Libraries
        # have no fast depthwise 1-D convolution.
        strips = jnp.concatenate([zeros, rows, zeros, columns, zeros], 1)
        L = H + K // 2 + W
        y = sum(taps[i].reshape(1, 1, C) * strips[:, i : i + L] for i in range(K))
        y = y + bias.reshape(1, 1, C)
        gate, dtype = _GATES[self.gate_layer], x.dtype
        a_h = gate(GroupNorm(4, name="norm_h")(y[:, :H]), axis=1).astype(dtype)
        a_w = gate(GroupNorm(4, name="norm_w")(y[:, -W:]), axis=1).astype(dtype)
        a_h, a_w = a_h[:, :, None, :], a_w[:, None, :, :]
        self.sow("intermediates", "height_gate", a_h)
        self.sow("intermediates", "width_gate", a_w)
        return a_h * a_w

    def _strip_taps(self, C: int) -> tuple[jax.Array, jax.Array]:
        """Returns the four groups' taps `[K, C]` and biases `[C]` side by side."""
        sizes = self.group_kernel_sizes
        groups = [
            StripTaps(C // 4, size, max(sizes), name=name)()
            for name, size in zip(_STRIP_CONVS, sizes, strict=True)
        ]
        taps, biases = zip(*groups, strict=True)
        return jnp.concatenate(taps, 1), jnp.concatenate(biases)

    def _channel_gate(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the gate `[N, 1, 1, C]` of the spatially gated map."""
        tokens = GroupNorm(1, name="norm")(self._tokens(x))
        q, k = self._scale("q")(tokens), self._scale("k")(tokens)
        v = self._scale("v")(jnp.mean(at_least_float32(tokens), 1))
        z = self._attend(q, k, v, train)
        return _GATES[self.gate_layer](z, axis=-1).astype(x.dtype)[:, None, None, :]

    def _tokens(self, x: jax.Array) -> jax.Array:
        """Returns the down-sampled map `[N, T, C]`."""
        N, H, W, C = x.shape
        if self.window_size == -1:
            return jnp.mean(x, (1, 2)).reshape(N, 1, C)
        s = self.window_size
        h, w = H // s, W // s
        windows = x[:, : h * s, : w * s].reshape(N, h, s, w, s, C)
        if self.down_sample_mode == "avg_pool":
            return jnp.mean(windows, (2, 4)).reshape(N, h * w, C)
        windows = windows.transpose(0, 1, 3, 2, 4, 5).reshape(N, h * w, s * s, C)
        if self.down_sample_mode == "max_pool":
            return max_along(windows, 2).reshape(N, h * w, C)
        shape = (1, 1, C * s * s, C)
        kernel = ConvKernel(shape, self.kernel_init, name="conv_d")().astype(x.dtype)
        unshuffled = windows.swapaxes(2, 3).reshape(N, h * w, 1, C * s * s)
        return conv2d(unshuffled, kernel).reshape(N, h * w, C)

    def _scale(self, name: str) -> ChannelScale:
        return ChannelScale(self.qkv_bias, self.kernel_init, self.bias_init, name=name)

    def _attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, train: bool
    ) -> jax.Array:
        """Attention from q, k `[N, T, C]` and the tokens' mean v `[N, C]` to `[N, C]`.

        In training the gradient computes the scores `[N, h, d, d]` again: stored, they
        would be the largest arrays of a network's last stages.
        """
        N, C = v.shape
        heads = (self.head_num, C // self.head_num)
        q, k, v = (a.reshape(*a.shape[:-1], *heads) for a in (q, k, v))
        rate = self.attn_drop_ratio if train else 0.0
        key = self.make_rng("dropout") if rate else None

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            logits = jnp.einsum("nthc,nthe->nhce", q, k, preferred_element_type=v.dtype)
            scores = nn.softmax(logits * heads[1] ** -0.5)
            if key is not None:
                kept = jax.random.bernoulli(key, 1 - rate, scores.shape)
                scores = jnp.where(kept, scores / (1 - rate), 0)
            return jnp.einsum("nhce,nhe->nhc", scores, v)

        if train:
            attend = jax.checkpoint(attend)
        return attend(q, k, v).reshape(N, C)

    def _check(self, shape: tuple[int, ...]) -> None:
        H, W, C = shape[1:]
        sizes, s, mode = (
            self.group_kernel_sizes,
            self.window_size,
            self.down_sample_mode,
        )
        if C % 4:
            raise ValueError(f"SCSA: the {C} channels must be a multiple of 4")
        divides = self.head_num >= 1 and C % self.head_num == 0
        require("head_num", self.head_num, divides, f"a divisor of the {C} channels")
        odd = len(sizes) == 4 and all(k % 2 for k in sizes)
        require("group_kernel_sizes", tuple(sizes), odd, "four odd numbers")
        choose("down_sample_mode", mode, _DOWN_SAMPLE_MODES)
        choose("gate_layer", self.gate_layer, _GATES)
        rate = self.attn_drop_ratio
        require("attn_drop_ratio", rate, 0 <= rate < 1, "at least 0 and less than 1")
        if s == -1:
            return
        fits = f"-1, or 1 to {min(H, W)} for a map of {H}x{W}"
        require("window_size", s, 1 <= s <= min(H, W), fits)
        if mode == "recombination":
            wanted = f"a divisor of height {H} and width {W} to recombine"
            require("window_size", s, H % s == W % s == 0, wanted)
