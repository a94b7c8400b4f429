"""Evaluation: one confusion matrix of pixels, counted exactly, divided on the host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxattn.data.augment.transform import IGNORED

_LOW_BITS = 32


@struct.dataclass
class Counts:
    """Counts that stay exact up to 2**64: a data set has more pixels than an int32.

    Attributes:
        low: The lower 32 bits, uint32.
        high: The upper ones, uint32.
    """

    low: jax.Array
    high: jax.Array

    @classmethod
    def of(cls, values: jax.Array) -> "Counts":
        """Returns int32 counts of at least 0."""
        low = values.astype(jnp.uint32)
        return cls(low, jnp.zeros_like(low))

    def __add__(self, other: "Counts") -> "Counts":
        low = self.low + other.low  # modulo 2**32
        carry = (low < other.low).astype(jnp.uint32)
        return Counts(low, self.high + other.high + carry)

    def total(self) -> np.ndarray:
        """Returns the counts on the host, int64."""
        low, high = (np.asarray(v, np.int64) for v in (self.low, self.high))
        return (high << _LOW_BITS) + low


@struct.dataclass
class EvalSums:
    """Sums over examples; adding two of them joins their examples.

    Attributes:
        count: Examples, int32.
        confusion: Pixels not ignored, `[K, K]`, rows are labels, columns predictions.
        loss: Summed loss of the pixels.
        weight: What that sum is to be divided by.
        dice: Summed Dice loss of the examples.
    """

    count: jax.Array
    confusion: Counts
    loss: jax.Array
    weight: jax.Array
    dice: jax.Array

    def __add__(self, other: "EvalSums") -> "EvalSums":
        def is_whole(leaf: Any) -> bool:
            return isinstance(leaf, Counts)

        return jax.tree.map(lambda a, b: a + b, self, other, is_leaf=is_whole)


@struct.dataclass
class Predictions:
    """What was predicted for each example of a batch.

    Attributes:
        label_map: uint8 `[N, H, W]`.
        iou: Mean IoU of the example's own classes, float32 `[N]`; NaN where all of it
            is ignored.
    """

    label_map: jax.Array
    iou: jax.Array


def predict(logits: jax.Array) -> jax.Array:
    """Returns the likeliest class of each pixel, uint8 `[N, H, W]`."""
    return jnp.argmax(logits, -1).astype(jnp.uint8)


def confusions(
    label_map: jax.Array, predicted: jax.Array, num_classes: int
) -> jax.Array:
    """Counts the pixels of each example by true and by predicted class.

    Exact in any number, and at most of int32's: a scatter of integers.

    Args:
        label_map: uint8 `[N, H, W]`; pixels that are `IGNORED` do not count.
        predicted: uint8 `[N, H, W]` in 0..K-1.
        num_classes: K.

    Returns:
        int32 `[N, K, K]`, rows are true classes.
    """
    N, K = len(label_map), num_classes
    cells = label_map.astype(jnp.int32) * K + predicted.astype(jnp.int32)
    # The cell behind all of an example takes what is ignored.
    cells = jnp.where(label_map == IGNORED, K * K, cells).reshape(N, -1)
    cells += (jnp.arange(N) * (K * K + 1))[:, None]
    counts = jnp.bincount(cells.ravel(), length=N * (K * K + 1))
    return counts.reshape(N, -1)[:, : K * K].reshape(N, K, K)


def image_iou(confusion: jax.Array) -> jax.Array:
    """Returns the mean IoU `[N]` of confusions `[N, K, K]` of single examples.

    The mean is over the classes that are in the label map or in the prediction; NaN
    where there are none.
    """
    hits = jnp.diagonal(confusion, 0, 1, 2)
    union = confusion.sum(1) + confusion.sum(2) - hits
    iou = jnp.sum(hits / jnp.maximum(union, 1), -1)
    count = jnp.sum(union > 0, -1)
    return jnp.where(count > 0, iou / jnp.maximum(count, 1), jnp.nan)


def summarize(sums: EvalSums, *, dice_weight: float = 0.0) -> dict[str, Any]:
    """Divides the sums and returns the figures of an evaluation.

    Args:
        sums: Of the evaluation.
        dice_weight: Of the Dice loss, as in training.

    Returns:
        Floats `loss` and those of `figures_of`; int `count`, examples.
    """
    s = jax.device_get(sums)
    count = int(s.count)
    loss = float(s.loss) / max(float(s.weight), np.finfo(np.float32).tiny)
    loss += dice_weight * float(s.dice) / count
    return {"count": count, "loss": loss, **figures_of(s.confusion.total())}


def figures_of(confusion: np.ndarray) -> dict[str, Any]:
    """Returns the figures of a confusion matrix.

    IoU is `tp / (row + column - tp)`, accuracy `tp / row`. A class that is neither in a
    label map nor predicted has NaN for both, one that is only predicted an IoU of 0 and
    an accuracy of NaN. Means leave NaN out, as mmseg's do.

    Args:
        confusion: int64 `[K, K]`, rows are true classes.

    Returns:
        Floats `mean_iou`, `mean_accuracy` and `pixel_accuracy` in [0, 1], 0 where there
        is no pixel; NumPy arrays `confusion`, and per class `[K]` `iou`, `accuracy` and
        `support` (pixels).
    """
    hits, support = np.diag(confusion), confusion.sum(1)
    iou = _ratio(hits, support + confusion.sum(0) - hits)
    accuracy = _ratio(hits, support)
    return {
        "mean_iou": _mean(iou),
        "mean_accuracy": _mean(accuracy),
        "pixel_accuracy": int(hits.sum()) / max(int(support.sum()), 1),
        "confusion": confusion,
        "iou": iou,
        "accuracy": accuracy,
        "support": support,
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides, with NaN for 0 / 0."""
    safe = np.maximum(denominator, 1)
    return np.where(denominator > 0, numerator / safe, np.nan)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
