"""Non-local block: every position attends to all others.

Wang, Girshick, Gupta, He, "Non-local Neural Networks", CVPR 2018.
https://arxiv.org/abs/1711.07971
Reference code read: AlexHex7/Non-local_pytorch @ec15789 (Apache-2.0), a third party's,
lib/non_local_embedded_gaussian.py; pytorch-image-models @aa4b585 (Apache-2.0),
timm/layers/non_local_attn.py (numbers compared in tests/test_zoo.py). The authors'
own is for Caffe2.

Notation: N batch, H, W spatial, C channels, D of the embedding, T positions that
attend, S positions that are attended to.
`NonLocal` without keywords is Non-local_pytorch's embedded Gaussian in two dimensions.
timm's is `sub_sample=False, use_scale=True` and D = C / 8, rounded to a multiple of 8;
it starts its convolutions Kaiming normal.
Deviation from the code:
  - `sub_sample` leaves a map of one row or column as it is; there it is an error.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import require
from jaxattn.ops.conv import Conv
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.pool import max_pool


class NonLocal(nn.Module):
    """Adds to every position a mean of all, weighted by similarity (embedded Gaussian).

        x + bn(W(softmax(theta(x)^T phi(x)) g(x)))

    theta, phi, g and W are 1x1 convolutions. The sum starts as x.

    Attributes:
        hidden: Channels D of the embedding; None is half of the input's.
        sub_sample: Attends to the maxima of 2x2 windows of phi and g.
        norm: Normalises what is added.
        use_scale: Divides the similarities by the square root of the input's channels.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            the softmax.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    hidden: int | None = None
    sub_sample: bool = True
    norm: bool = True
    use_scale: bool = False
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the block.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If `hidden` is less than 1.
        """
        x = as_feature_map(self, x)
        C = x.shape[-1]
        hidden = max(C // 2, 1) if self.hidden is None else self.hidden
        require("hidden", hidden, hidden >= 1, "at least 1")
        # Named by their place in the authors' sequences.
        suffix = ".0" if self.sub_sample else ""
        theta, phi, g = (
            Conv(hidden, 1, use_bias=True, name=name)(x)
            for name in ("theta", f"phi{suffix}", f"g{suffix}")
        )
        if self.sub_sample and min(x.shape[1:3]) > 1:
            phi, g = (max_pool(v, 2, stride=2, padding=0) for v in (phi, g))
        scale = C**-0.5 if self.use_scale else 1.0
        y = attend(theta, phi, g, scale)
        zeros = nn.initializers.zeros
        if not self.norm:
            project = Conv(
                C, 1, use_bias=True, kernel_init=zeros, bias_init=zeros, name="W"
            )
            return x + project(y)
        norm = BatchNorm(scale_init=zeros, axis_name=self.axis_name, name="W.1")
        return norm(Conv(C, 1, use_bias=True, name="W.0")(y), train=train, residual=x)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, scale: float = 1.0) -> jax.Array:
    """Returns softmax(scale * q k^T) v over positions; the softmax is float32.

    Args:
        q: What attends, `[N, H, W, D]`.
        k: What is compared with it, `[N, h, w, D]`.
        v: What is averaged, `[N, h, w, E]`.
        scale: Of the similarities.

    Returns:
        `[N, H, W, E]`, the dtype of `v`.
    """
    N, H, W, D = q.shape
    S, E = k.shape[1] * k.shape[2], v.shape[-1]
    q, k, v = q.reshape(N, H * W, D), k.reshape(N, S, D), v.reshape(N, S, E)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("ntd,nsd->nts", q, k, preferred_element_type=wide)
    weights = nn.softmax(logits * scale).astype(v.dtype)
    return jnp.einsum("nts,nse->nte", weights, v).reshape(N, H, W, E)
