"""Evaluation: masked sums on the device, divided once on the host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxattn.tasks.classification.losses import cross_entropy, hits

NUM_BINS = 15  # of confidence, as in Guo et al., "On Calibration", ICML 2017
_TOP_K = 5


@struct.dataclass
class EvalSums:
    """Sums over examples; adding two of them joins their examples.

    Attributes:
        count: Examples, int32.
        loss: Summed cross entropy.
        top5: Examples whose label is among the five largest logits, int32.
        confusion: int32 `[C, C]`, rows are labels, columns predictions.
        bin_count: Examples by confidence of the prediction, int32 `[NUM_BINS]`.
        bin_confidence: Summed confidence by bin.
        bin_hits: Right predictions by bin, int32.
    """

    count: jax.Array
    loss: jax.Array
    top5: jax.Array
    confusion: jax.Array
    bin_count: jax.Array
    bin_confidence: jax.Array
    bin_hits: jax.Array

    def __add__(self, other: "EvalSums") -> "EvalSums":
        return jax.tree.map(jnp.add, self, other)


@struct.dataclass
class Predictions:
    """What was predicted for each example of a batch.

    Attributes:
        label: int32 `[N]`.
        confidence: Its probability, float32 `[N]`.
        is_wrong: bool `[N]`; False for padding.
    """

    label: jax.Array
    confidence: jax.Array
    is_wrong: jax.Array


def predict(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Predictions:
    """Returns the predictions for a batch.

    Args:
        logits: float32 `[N, C]`.
        labels: The true ones, int32 `[N]`.
        mask: bool `[N]`, False for padding.
    """
    label = jnp.argmax(logits, -1).astype(jnp.int32)
    confidence = jnp.max(jax.nn.softmax(logits), -1)
    return Predictions(label, confidence, mask & (label != labels))


def evaluation_sums(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    *,
    label_smoothing: float = 0.0,
) -> EvalSums:
    """Returns the sums over the examples that the mask keeps.

    Args:
        logits: float32 `[N, C]`.
        labels: int32 `[N]`; any valid class where masked.
        mask: bool `[N]`, False for padding.
        label_smoothing: Of the loss, as in training.
    """
    C = logits.shape[-1]
    weight = mask.astype(jnp.int32)
    right = hits(logits, labels).astype(jnp.int32) * weight
    top = jax.lax.top_k(logits, min(_TOP_K, C))[1]
    in_top = jnp.any(top == labels[:, None], -1)
    confidence = jnp.max(jax.nn.softmax(logits), -1)
    bins = jnp.clip((confidence * NUM_BINS).astype(jnp.int32), 0, NUM_BINS - 1)
    loss = cross_entropy(logits, labels, label_smoothing=label_smoothing)

    def by_bin(values: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, bins, NUM_BINS)

    cells = labels * C + jnp.argmax(logits, -1).astype(jnp.int32)
    return EvalSums(
        count=jnp.sum(weight),
        # `where`, for a product would let NaN of padding through.
        loss=jnp.sum(jnp.where(mask, loss, 0)),
        top5=jnp.sum(in_top * weight),
        confusion=jax.ops.segment_sum(weight, cells, C * C).reshape(C, C),
        bin_count=by_bin(weight),
        bin_confidence=by_bin(jnp.where(mask, confidence, 0)),
        bin_hits=by_bin(right),
    )


def summarize(sums: EvalSums) -> dict[str, Any]:
    """Divides the sums and returns the figures of an evaluation.

    Returns:
        Floats `loss`, `accuracy`, `top5_accuracy`, `ece` (expected calibration error)
        in [0, 1]; int `count`; NumPy arrays `confusion` `[C, C]`, and per class `[C]`
        `precision`, `recall`, `f1` (0 where undefined) and `support`; and by bin of
        confidence `bin_count`, `bin_confidence`, `bin_accuracy`.
    """
    s = jax.tree.map(np.asarray, jax.device_get(sums))
    count = int(s.count)
    diagonal = np.diag(s.confusion)
    support, predicted = s.confusion.sum(1), s.confusion.sum(0)
    bin_confidence = _ratio(s.bin_confidence, s.bin_count)
    bin_accuracy = _ratio(s.bin_hits, s.bin_count)
    gap = np.abs(bin_accuracy - bin_confidence)
    return {
        "count": count,
        "loss": float(s.loss) / count,
        "accuracy": int(diagonal.sum()) / count,
        "top5_accuracy": int(s.top5) / count,
        "ece": float((gap * s.bin_count).sum() / count),
        "confusion": s.confusion,
        "precision": _ratio(diagonal, predicted),
        "recall": _ratio(diagonal, support),
        "f1": _ratio(2 * diagonal, support + predicted),
        "support": support,
        "bin_count": s.bin_count,
        "bin_confidence": bin_confidence,
        "bin_accuracy": bin_accuracy,
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides, with 0 for 0 / 0."""
    return numerator / np.maximum(denominator, 1)
