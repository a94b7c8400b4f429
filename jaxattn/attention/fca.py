"""Frequency channel attention (FCA) of FcaNet: SE of cosine transforms for means.

Qin, Zhang, Wu, Li, "FcaNet: Frequency Channel Attention Networks", ICCV 2021.
https://arxiv.org/abs/2012.11879
Reference code: cfzd/FcaNet @aa5fb63, model/layer.py, MIT licence (numbers compared
in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels, P and Q sides of the cosine transform
(DCT), n frequencies. Channels are n parts, each of one frequency.
The frequency (0, 0) is a mean times sqrt(P Q): what the gate sees is not on SE's scale.
Frequencies are those of a transform of 7 x 7 and grow with its sides by whole factors;
below 7 the factor is 0, and all of them are (0, 0).
Deviations from the code:
  - the size of the transform may be left out: it is that of the map at `init`. The
    authors' networks have 56, 28, 14 and 7 by stage. A map of another size is pooled
    to it, as in the code;
  - pooling and transform are one weighted sum of the map, computed from the size of
    both: the filters `dct_layer.weight` `[C, P, Q]` are kept for that size, and for
    PyTorch, but not read.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxattn.errors import UserError, choose, require
from jaxattn.ops.inputs import as_feature_map, at_least_float32
from jaxattn.ops.linear import Linear

# The authors' choices, each in order: along the height, along the width.
_FREQUENCIES = {
    "top": ("00600114513000324635526553342261", "01052020060463526333511242113053"),
    "low": ("00110221203401301234501234561234", "01012012230043154321065432106543"),
    "bot": ("61332412445146256162243355625536", "64466314456522514350311242115333"),
}
_COUNTS = (1, 2, 4, 8, 16, 32)
FREQUENCY_SELECTIONS = [f"{kind}{n}" for kind in _FREQUENCIES for n in _COUNTS]
"""What `freq_sel_method` may be."""


class FrequencyChannelAttention(nn.Module):
    """Scales every channel by a gate from one DCT coefficient of each (eq. 10 to 13).

        z_c = sum_hw(x_c * D_i),  D_i the filter of the channel's part
        x * sigmoid(W2 relu(W1 z))

    Attributes:
        reduction: Channels of the input per channel of the bottleneck.
        freq_sel_method: "top", "low" or "bot" and the number n of frequencies, one of
            1, 2, 4, 8, 16 and 32, which divides C: those that were best alone, the
            lowest, those that were worst.
        dct_size: Sides P and Q of the transform; None is the map's size at `init`.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            all that is computed of the coefficients.
    """

    reduction: int = 16
    freq_sel_method: str = "top16"
    dct_size: tuple[int, int] | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gate.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype. Of another height or width
                than the transform's, it is pooled as by `torch.nn.AdaptiveAvgPool2d`.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If an attribute is not as described above, or the bottleneck
                would have no channel.
        """
        del train
        x = as_feature_map(self, x)
        C = x.shape[-1]
        self._check(C)
        transform = FrequencyPooling(
            self.freq_sel_method, self.dct_size, name="dct_layer"
        )
        z = Linear(C // self.reduction, use_bias=False, name="fc.0")(transform(x))
        z = Linear(C, use_bias=False, name="fc.2")(nn.relu(z))
        gate = nn.sigmoid(z).astype(x.dtype)[:, None, None, :]
        self.sow("intermediates", "channel_gate", gate)
        return x * gate

    def _check(self, C: int) -> None:
        choose("freq_sel_method", self.freq_sel_method, FREQUENCY_SELECTIONS)
        n = len(_frequencies(self.freq_sel_method)[0])
        if C % n:
            raise UserError(
                f"freq_sel_method={self.freq_sel_method!r}: its {n} frequencies must"
                f" divide the {C} channels"
            )
        require("reduction", self.reduction, self.reduction >= 1, "at least 1")
        if self.reduction > C:
            raise UserError(
                f"FrequencyChannelAttention: reduction={self.reduction} exceeds the {C}"
                " channels"
            )
        if (size := self.dct_size) is not None:
            fits = len(size) == 2 and min(size) >= 1
            require("dct_size", size, fits, "height and width, at least 1")


class FrequencyPooling(nn.Module):
    """One DCT coefficient of every channel.

    Its filters are in `batch_stats`, as a buffer of PyTorch's: nothing trains them.

    Attributes:
        freq_sel_method: See `FrequencyChannelAttention`.
        size: Sides of the transform; None is the map's size at `init`.
    """

    freq_sel_method: str
    size: tuple[int, int] | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the coefficients `[N, C]` of `x` `[N, H, W, C]`, float32."""
        N, H, W, C = x.shape
        size = self.size or self._size_at_init() or (H, W)
        self._keep_filters(size, C)
        frequencies = _frequencies(self.freq_sel_method)
        rows, columns = (
            jnp.asarray(_pool(length, s) @ _cosines(f, s), jnp.float32)
            for length, s, f in zip((H, W), size, frequencies, strict=True)
        )
        n = rows.shape[1]
        # The filters are products of a row's and a column's weights.
        z = at_least_float32(x).reshape(N, H, W, n, C // n)
        z = jnp.sum(z * columns.reshape(1, 1, W, n, 1), 2)
        return jnp.sum(z * rows.reshape(1, H, n, 1), 1).reshape(N, C)

    def _size_at_init(self) -> tuple[int, int] | None:
        if not self.has_variable("batch_stats", "weight"):
            return None
        _, P, Q = self.get_variable("batch_stats", "weight").shape
        return P, Q

    def _keep_filters(self, size: tuple[int, int], C: int) -> None:
        """Writes them anew whenever statistics are, so that no average blurs them."""
        if self.is_mutable_collection("batch_stats"):
            filters = frequency_filters(self.freq_sel_method, size, C)
            self.put_variable("batch_stats", "weight", jnp.asarray(filters))


def frequency_filters(
    freq_sel_method: str, size: tuple[int, int], channels: int
) -> np.ndarray:
    """Returns the filter of every channel, float32 `[C, P, Q]`.

    Args:
        freq_sel_method: See `FrequencyChannelAttention`.
        size: P and Q.
        channels: C, a multiple of the number of frequencies.
    """
    frequencies = _frequencies(freq_sel_method)
    rows, columns = (_cosines(f, s) for f, s in zip(frequencies, size, strict=True))
    filters = np.einsum("pn,qn->npq", rows, columns)
    return np.repeat(filters, channels // len(filters), 0).astype(np.float32)


def _frequencies(freq_sel_method: str) -> tuple[list[int], list[int]]:
    """Returns the frequencies along height and width for a transform of 7 x 7."""
    count = int(freq_sel_method[3:])
    heights, widths = _FREQUENCIES[freq_sel_method[:3]]
    return [int(u) for u in heights[:count]], [int(v) for v in widths[:count]]


def _cosines(frequencies: list[int], size: int) -> np.ndarray:
    """Returns the orthonormal DCT's cosines `[size, n]` along one axis."""
    u = np.array(frequencies) * (size // 7)
    positions = np.arange(size)[:, None] + 0.5
    scale = np.where(u > 0, np.sqrt(2 / size), np.sqrt(1 / size))
    return np.cos(np.pi * u * positions / size) * scale


def _pool(length: int, size: int) -> np.ndarray:
    """Returns what adaptive pooling takes of each position `[length, size]`."""
    positions, windows = np.arange(length)[:, None], np.arange(size)
    start, stop = windows * length // size, -(-(windows + 1) * length // size)
    inside = (positions >= start) & (positions < stop)
    return inside / (stop - start)
