"""The head of a classifier: global average pooling and one fully connected layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxattn.ops.features import mark_features
from jaxattn.ops.init import torch_bias, torch_kernel
from jaxattn.ops.inputs import at_least_float32
from jaxattn.ops.linear import Linear


def classify(
    module: nn.Module,
    x: jax.Array,
    num_classes: int,
    *,
    name: str,
    dropout_rate: float = 0.0,
    small_init: bool = False,
    train: bool = False,
) -> jax.Array:
    """Returns the logits of a network's last map; call it in its `__call__`.

    Args:
        module: The network, whose last map is marked (`jaxattn.ops.mark_features`).
        x: The last map `[N, H, W, C]`.
        num_classes: Number of logits; 0: the pooled features are returned.
        name: Of the fully connected layer in the parameter tree.
        dropout_rate: Share of the pooled features that training sets to 0, by the rng
            stream "dropout".
        small_init: Starts the kernel normal with deviation 0.01 and the bias at 0,
            instead of torch's default.
        train: Selects dropout.

    Returns:
        float32 logits `[N, num_classes]`, or features `[N, C]`.
    """
    x = jnp.mean(mark_features(module, x), (1, 2))
    if num_classes > 0:
        x = nn.Dropout(dropout_rate, deterministic=not train, name="dropout")(x)
    kernel_init, bias_init = torch_kernel, torch_bias(x.shape[-1])
    if small_init:
        kernel_init, bias_init = nn.initializers.normal(0.01), nn.initializers.zeros
    return last_layer(x, Linear(num_classes, kernel_init, bias_init, name=name))


def last_layer(x: jax.Array, linear: Linear) -> jax.Array:
    """Returns float32 logits `[N, K]`, or without classes what they would be made of.

    Args:
        x: What the network knows of every image, `[N, C]`.
        linear: The layer of its logits, of K features; where K is 0 it is left out.
    """
    return at_least_float32(linear(x) if linear.features else x)
