"""Classification losses, one value per example."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
    """Returns the cross entropy against smoothed labels, `[N]`.

    The target is `(1 - s) * onehot + s / C`, as in PyTorch's `CrossEntropyLoss`.

    Args:
        logits: float32 `[N, C]`.
        labels: int `[N]` in 0..C-1.
        label_smoothing: Share s of the uniform distribution, in [0, 1).
    """
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    uniform = jax.nn.logsumexp(logits, -1) - jnp.mean(logits, -1)
    return (1 - label_smoothing) * hard + label_smoothing * uniform


def hits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns 1 where the largest logit `[N, C]` is the label's, else 0, `[N]`."""
    return (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
