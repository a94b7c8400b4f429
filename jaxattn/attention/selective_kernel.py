"""Selective Kernel convolution (SK): branches of several sizes, mixed by channel.

Li, Wang, Hu, Yang, "Selective Kernel Networks", CVPR 2019.
https://arxiv.org/abs/1903.06586
Reference code read: HZAI-ZJNU/SCSA @8c46866 (Apache-2.0), mmpretrain/models/attentions/
SK.py; pytorch-image-models @aa4b585 (Apache-2.0), timm/layers/selective_kernel.py.
The authors' own, implus/SKNet @17dd708 (Caffe) and implus/PytorchInsight @2864528
("SK*"), have no licence: written from their formulas. (numbers compared in
tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels, O output channels, i branch.
`SelectiveKernel` without keywords is SCSA's. The others are keywords of it:
  - the paper: `groups=32, min_hidden=32`;
  - SK*: `groups=(1, 32), dilation=(1, 1)`;
  - timm: `split_input=True`, and a bottleneck that is a multiple of 8.
It replaces a convolution with its normalisation and ReLU.
Deviations from SCSA's code:
  - the first layer of the bottleneck has the O channels that it sees (there C, which
    is an error unless both are equal);
  - a bottleneck has at least one channel.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.attention.se import squeeze
from jaxattn.errors import require
from jaxattn.ops.conv import Conv
from jaxattn.ops.init import kaiming_normal
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.norm import BatchNorm


class SelectiveKernel(nn.Module):
    """A convolution of several branches, of which every channel chooses its mixture.

        u_i = relu(bn(conv_i(x))),  dilated i + 1 times
        a = softmax_i(W2 relu(bn(W1 mean_hw(sum_i u_i))))
        out = sum_i a_i * u_i

    Attributes:
        features: Output channels; None is as many as the input has.
        num_branches: Branches.
        kernel_size: Side of the kernels, odd; a sequence has one for each branch.
        stride: Step along H and W.
        dilation: Distance between the taps of each branch; a number d is d, 2 d, 3 d,
            ...
        groups: Groups of channels that do not see each other; a sequence has a number
            for each branch.
        reduction: Output channels per channel of the bottleneck.
        min_hidden: Least number of channels of the bottleneck.
        split_input: Gives each branch its share of the input's channels.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            all that is computed of the means.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int | None = None
    num_branches: int = 2
    kernel_size: int | Sequence[int] = 3
    stride: int = 1
    dilation: int | Sequence[int] = 1
    groups: int | Sequence[int] = 1
    reduction: int = 16
    min_hidden: int = 1
    split_input: bool = False
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Convolves and selects.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics; the bottleneck's, of N values a channel,
                need a batch of two or more.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, in `dtype`.

        Raises:
            UserError: If an attribute is out of its range, has another number of
                values than branches, or does not divide the channels.
        """
        x = as_feature_map(self, x)
        features = x.shape[-1] if self.features is None else self.features
        maps = self._branches(x, features, train)
        pooled = functools.reduce(jnp.add, map(squeeze, maps))
        return mix(self, maps, self._select(pooled, features, train))

    def _branches(self, x: jax.Array, features: int, train: bool) -> list[jax.Array]:
        """Returns the maps of all branches."""
        count = self.num_branches
        require("num_branches", count, count >= 1, "at least 1")
        sizes, groups = self._of_each("kernel_size"), self._of_each("groups")
        odd = all(k > 0 and k % 2 for k in sizes)
        require("kernel_size", self.kernel_size, odd, "odd and above 0")
        if isinstance(self.dilation, int):
            dilations = tuple(self.dilation * i for i in range(1, count + 1))
        else:
            dilations = self._of_each("dilation")
        inputs = [x] * count
        if self.split_input:
            C = x.shape[-1]
            divides = C % count == 0
            require("num_branches", count, divides, f"a divisor of the {C} channels")
            inputs = jnp.split(x, count, -1)
        maps = []
        for i, (x_i, k, d, g) in enumerate(
            zip(inputs, sizes, dilations, groups, strict=True)
        ):
            divides = g >= 1 and x_i.shape[-1] % g == features % g == 0
            wanted = f"divisors of {x_i.shape[-1]} input channels and {features=}"
            require("groups", self.groups, divides, wanted)
            conv = Conv(
                features,
                k,
                self.stride,
                padding=d * (k // 2),
                dilation=d,
                groups=g,
                kernel_init=kaiming_normal,
                name=f"conv.{i}.conv",
            )
            norm = BatchNorm(axis_name=self.axis_name, name=f"conv.{i}.bn")
            maps.append(norm(conv(x_i), train=train, activation="relu"))
        return maps

    def _select(self, pooled: jax.Array, features: int, train: bool) -> jax.Array:
        """Returns the weights of the branches `[N, branches, O]` of means `[N, O]`."""
        for key in ("reduction", "min_hidden"):
            require(key, getattr(self, key), getattr(self, key) >= 1, "at least 1")
        hidden = max(features // self.reduction, self.min_hidden)
        conv = Conv(hidden, 1, kernel_init=kaiming_normal, name="fc.0.conv")
        norm = BatchNorm(axis_name=self.axis_name, name="fc.0.bn")
        z = norm(conv(pooled[:, None, None]), train=train, activation="relu")
        logits = Conv(self.num_branches * features, 1, name="fc.1")(z)
        return nn.softmax(logits.reshape(-1, self.num_branches, features), 1)

    def _of_each(self, key: str) -> tuple[int, ...]:
        """Returns an attribute's value of every branch."""
        value, count = getattr(self, key), self.num_branches
        values = (value,) * count if isinstance(value, int) else tuple(value)
        require(key, value, len(values) == count, f"one for each of {count} branches")
        return values


def mix(module: nn.Module, maps: Sequence[jax.Array], weights: jax.Array) -> jax.Array:
    """Returns the sum of maps, each weighed by channel, and sows the weights as gates.

    Args:
        module: That sows them.
        maps: I feature maps `[N, H, W, C]`.
        weights: `[N, I, C]`.
    """
    terms = []
    for i, x in enumerate(maps):
        gate = weights[:, i, None, None].astype(x.dtype)
        module.sow("intermediates", f"branch_{i}_gate", gate)
        terms.append(x * gate)
    return functools.reduce(jnp.add, terms)
