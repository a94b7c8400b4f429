"""Segmentation losses: sums over the pixels of each example, float32.

A pixel whose class is `IGNORED` has no loss and no gradient. Losses are sums and not
means, for what they are divided by is of the whole batch: see `Segmentation.weigh`.

Everything is an elementwise function of logits and one-hot classes, without gathers,
whose gradients are scatters: slow on CPUs.

Notation: N examples, H, W pixels, K classes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.data.augment.transform import IGNORED

_TINY = np.finfo(np.float32).tiny


def one_hot(label_map: jax.Array, num_classes: int) -> jax.Array:
    """Returns bool `[N, H, W, K]` of label maps `[N, H, W]`; no class where ignored."""
    return label_map[..., None].astype(jnp.int32) == jnp.arange(num_classes).reshape(
        1, 1, 1, -1
    )


def pixel_weights(
    label_map: jax.Array, class_weights: Sequence[float] | None = None
) -> jax.Array:
    """Returns the weight of each pixel, float32 `[N, H, W]`; 0 where it is ignored.

    Args:
        label_map: uint8 `[N, H, W]`.
        class_weights: K weights; by default all are 1.
    """
    if class_weights is None:
        return (label_map != IGNORED).astype(jnp.float32)
    chosen = one_hot(label_map, len(class_weights))
    weights = jnp.asarray(class_weights, jnp.float32).reshape(1, 1, 1, -1)
    return jnp.sum(jnp.where(chosen, weights, 0), -1)


def cross_entropy(
    logits: jax.Array,
    label_map: jax.Array,
    *,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> jax.Array:
    """Returns the cross entropy of each pixel, float32 `[N, H, W]`; 0 where ignored.

    With `focal_gamma` g it is multiplied by `(1 - p) ** g`, p the probability of the
    true class: the focal loss of Lin et al., ICCV 2017, equation 4, of a softmax.

    Args:
        logits: `[N, H, W, K]`.
        label_map: uint8 `[N, H, W]`.
        label_smoothing: Share s of the uniform distribution in the target, as in
            PyTorch's `CrossEntropyLoss`; with class weights a pixel's is that of its
            own class, where PyTorch's uniform part has every class's.
        focal_gamma: At least 0.
    """
    logits = logits.astype(jnp.float32)
    chosen, is_valid = one_hot(label_map, logits.shape[-1]), label_map != IGNORED
    partition = jax.nn.logsumexp(logits, -1)
    loss = partition - jnp.sum(jnp.where(chosen, logits, 0), -1)
    # Here, too: what follows could be infinite where there is no true class.
    loss = jnp.where(is_valid, loss, 0)
    if focal_gamma:
        # Above 0, where a power of 0 would have an infinite derivative.
        others = jnp.maximum(-jnp.expm1(-loss), _TINY)
        focus = others**focal_gamma
    else:
        focus = 1.0
    if label_smoothing:
        uniform = partition - jnp.mean(logits, -1)
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    return jnp.where(is_valid, focus * loss, 0)


def hard_pixels(
    logits: jax.Array, label_map: jax.Array, threshold: float, min_kept: int
) -> jax.Array:
    """Returns which pixels online hard example mining keeps, bool `[N, H, W]`.

    Those whose true class is less likely than `threshold`, and of an image at least the
    `min_kept` that are least likely; none that is ignored. As mmseg's OHEMPixelSampler,
    which keeps `N * min_kept` of the pixels of a batch of N.

    Args:
        logits: `[N, H, W, K]`.
        label_map: uint8 `[N, H, W]`.
        threshold: Probability, in (0, 1].
        min_kept: Pixels of each image.
    """
    loss = jax.lax.stop_gradient(cross_entropy(logits, label_map))
    is_valid = label_map != IGNORED
    # Behind all valid ones, whose probability is at most 1.
    likely = jnp.where(is_valid, jnp.exp(-loss), 2)
    ordered = jnp.sort(likely.reshape(len(likely), -1), -1)
    last = jnp.minimum(min_kept, jnp.sum(is_valid, (1, 2)) - 1)
    last = jnp.maximum(last, 0)[:, None]
    least = jnp.take_along_axis(ordered, last, -1)
    bound = jnp.maximum(least, threshold)[..., None]
    return is_valid & (likely < bound)


def dice_loss(logits: jax.Array, label_map: jax.Array) -> jax.Array:
    """Returns the soft Dice loss of each example, float32 `[N]`.

    `1 - 2 sum(p t) / (sum(p^2) + sum(t^2))` over the pixels not ignored, p the softmax
    and t the one-hot target: Milletari et al., "V-Net", 3DV 2016. The mean over the
    classes that the example holds; 0 where it holds none.

    Args:
        logits: `[N, H, W, K]`.
        label_map: uint8 `[N, H, W]`.
    """
    valid = (label_map != IGNORED)[..., None]
    chosen = one_hot(label_map, logits.shape[-1])
    p = jnp.where(valid, jax.nn.softmax(logits.astype(jnp.float32)), 0)
    common = jnp.sum(jnp.where(chosen, p, 0), (1, 2))
    count = jnp.sum(chosen, (1, 2)).astype(jnp.float32)
    total = jnp.sum(p * p, (1, 2)) + count
    holds = count > 0
    loss = jnp.where(holds, 1 - 2 * common / jnp.where(holds, total, 1), 0)
    return jnp.sum(loss, -1) / jnp.maximum(jnp.sum(holds, -1), 1)
