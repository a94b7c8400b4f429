"""CondConv: a convolution with a kernel for every example, mixed of experts.

Yang, Bender, Le, Ngiam, "CondConv: Conditionally Parameterized Convolutions for
Efficient Inference", NeurIPS 2019. https://arxiv.org/abs/1904.04971
Reference code read: pytorch-image-models @aa4b585 (Apache-2.0),
timm/layers/cond_conv2d.py, with the routing of CondConvResidual in
timm/models/_efficientnet_blocks.py (numbers compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C input and O output channels, K kernel size, G groups,
E experts.
It replaces a convolution; normalisation and activation come after it.
Deviations from the code:
  - the routing, there the block's around it, is inside;
  - the padding keeps the size of the map, and is no argument.
The experts' kernels are `[O * C / G * K * K, E]`, in PyTorch's order.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.attention.se import squeeze
from jaxattn.errors import require
from jaxattn.ops.conv import conv2d
from jaxattn.ops.init import torch_bias
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.linear import Linear


class Experts(nn.Module):
    """The kernels of all experts, mixed for every example.

    Attributes:
        shape: Of a kernel, `(K, K, C / G, O)`.
        count: Experts.
        use_bias: Has biases, too.
    """

    shape: tuple[int, int, int, int]
    count: int
    use_bias: bool

    @nn.compact
    def __call__(self, weights: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Mixes.

        Args:
            weights: Of the experts `[N, E]`.

        Returns:
            Kernels `[N, *shape]` and biases `[N, O]` or None, the dtype of `weights`.
        """
        K, _, I, O = self.shape  # noqa: E741
        init, dtype = torch_bias(K * K * I), weights.dtype
        size = (O * I * K * K, self.count)
        kernel = self.param("kernel", init, size, jnp.float32).astype(dtype)
        # The few experts are laid out anew, not the many mixtures.
        kernel = kernel.reshape(O, I, K, K, self.count).transpose(4, 2, 3, 1, 0)
        kernels = jnp.einsum("ne,em->nm", weights, kernel.reshape(self.count, -1))
        kernels = kernels.reshape(-1, *self.shape)
        if not self.use_bias:
            return kernels, None
        bias = self.param("bias", init, (self.count, O), jnp.float32)
        return kernels, weights @ bias.astype(dtype)


class CondConv(nn.Module):
    """A convolution whose kernel depends on the example.

        out_n = conv(x_n, sum_e r_ne W_e),  r = sigmoid(L mean_hw(x) + l)

    The kernels are mixed before the one convolution, so that an expert costs its
    parameters and little time.

    Attributes:
        features: Output channels O; None is as many as the input has.
        kernel_size: Side of the kernels, odd.
        stride: Step along H and W.
        dilation: Distance between the taps of the kernels.
        groups: Groups of channels that do not see each other.
        num_experts: Kernels E that are mixed.
        use_bias: Adds biases, mixed like the kernels.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            the routing.
    """

    features: int | None = None
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    num_experts: int = 4
    use_bias: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Mixes the kernels and convolves.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Unused; part of every block's signature.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, in `dtype`.

        Raises:
            UserError: If an attribute is out of its range, or `groups` does not divide
                the channels.
        """
        del train
        x = as_feature_map(self, x)
        C, k, G = x.shape[-1], self.kernel_size, self.groups
        O = C if self.features is None else self.features  # noqa: E741
        self._check(C, O)
        routing = nn.sigmoid(Linear(self.num_experts, name="routing_fn")(squeeze(x)))
        shape = (k, k, C // G, O)
        experts = Experts(shape, self.num_experts, self.use_bias, name="conv")
        kernels, biases = experts(routing.astype(x.dtype))
        convolve = functools.partial(
            conv2d,
            stride=self.stride,
            padding=self.dilation * (k // 2),
            dilation=self.dilation,
            groups=G,
        )
        if len(x) == 0:  # without a kernel of its own
            return convolve(x, jnp.zeros(shape, x.dtype))
        y = jax.vmap(lambda x, kernel: convolve(x[None], kernel)[0])(x, kernels)
        return y if biases is None else y + biases[:, None, None]

    def _check(self, C: int, O: int) -> None:  # noqa: E741
        for key in ("stride", "dilation", "groups", "num_experts"):
            require(key, getattr(self, key), getattr(self, key) >= 1, "at least 1")
        size, G = self.kernel_size, self.groups
        require("kernel_size", size, size > 0 and size % 2 == 1, "odd and above 0")
        wanted = f"a divisor of {C} input channels and features={O}"
        require("groups", G, O >= 1 and C % G == O % G == 0, wanted)
