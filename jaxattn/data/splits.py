"""Parts of a training split: what is held out for validation, and what is kept.

Both are choices by stratum, which is the class where examples have a label. Where they
have none there is one stratum, and the choice is plainly random.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from jaxattn.data.source import (
    ArraySource,
    Data,
    DrawingSource,
    DrawingSubset,
    SkippingSource,
    Source,
    Subset,
    skip_bad_images,
)
from jaxattn.errors import UserError


def hold_out(data: Data, fraction: float, seed: int) -> Data:
    """Returns the data with a part of the training split as validation split.

    Args:
        data: Without a validation split.
        fraction: The part of the training split, in [0, 1); 0 holds out nothing.
        seed: Of the choice.

    Raises:
        UserError: One of the two parts is empty.
    """
    if fraction == 0:
        return data
    train, val = stratified_split(_strata(data.train), fraction, seed)
    if len(train) == 0 or len(val) == 0:
        raise UserError(
            f"data.val_fraction={fraction}: splits the {len(data.train)} training "
            f"examples into {len(train)} and {len(val)}; use 0 to hold out none"
        )
    return replace(
        data, train=_take_train(data.train, train), val=take(data.train, val)
    )


def thin(
    data: Data, max_train_examples: int | None, max_eval_examples: int | None = None
) -> Data:
    """Returns the data with at most so many examples; None keeps all.

    Args:
        data: Any.
        max_train_examples: Of the training split.
        max_eval_examples: Of the validation split, and as many of the test split.
    """
    return replace(
        data,
        train=_thinned(data.train, max_train_examples, _take_train),
        val=data.val and _thinned(data.val, max_eval_examples, take),
        test=_thinned(data.test, max_eval_examples, take),
    )


def _thinned(
    source: Source, most: int | None, taken: Callable[[Source, np.ndarray], Source]
) -> Source:
    if most is None or len(source) <= most:
        return source
    # Part of an experiment's definition, so its seed is constant.
    _, kept = stratified_split(_strata(source), most / len(source), seed=0)
    return taken(source, kept)


def stratified_split(
    strata: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits `[0, N)` into what is kept and what is held out, by stratum.

    Of the N shuffled positions, sorted by stratum, every 1/fraction-th is held out:
    round(fraction * N) in all, and of each stratum its share to within one.

    Args:
        strata: The stratum of each example, int `[N]`.
        fraction: The share that is held out, in [0, 1].
        seed: Of the shuffle.

    Returns:
        The positions of both parts, each sorted.
    """
    order = np.random.default_rng(seed).permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    num_held = round(fraction * len(strata))
    held = np.diff(np.arange(len(strata) + 1) * num_held // max(len(strata), 1)) > 0
    return np.sort(order[~held]), np.sort(order[held])


def read_labels(source: Source) -> np.ndarray:
    """Returns the labels of all examples, int `[N]`.

    Raises:
        UserError: The examples have none.
    """
    labels = _find_labels(source)
    if labels is None:
        raise UserError("these examples have no label")
    return labels


def take(source: Source, indices: np.ndarray) -> Source:
    """Returns the examples at some positions, int `[n]`, as evaluation shows them."""
    if isinstance(source, ArraySource):
        targets = {key: values[indices] for key, values in source.targets.items()}
        return ArraySource(source.images[indices], targets)
    if isinstance(source, SkippingSource):  # stand-ins come from the same part
        return SkippingSource(take(source.source, indices))
    return Subset(source, indices)


def _take_train(source: Source, indices: np.ndarray) -> Source:
    """The same, drawn anew at every use if those of the source are."""
    if isinstance(source, SkippingSource):
        return skip_bad_images(_take_train(source.source, indices))
    if isinstance(source, DrawingSource):
        return DrawingSubset(source, indices)
    return take(source, indices)


def _strata(source: Source) -> np.ndarray:
    labels = _find_labels(source)
    return np.zeros(len(source), np.int32) if labels is None else labels


def _find_labels(source: Source) -> np.ndarray | None:
    """The labels, None where the target is something else."""
    if isinstance(source, Subset):
        labels = _find_labels(source.source)
        return None if labels is None else labels[source.indices]
    if isinstance(source, SkippingSource):
        return _find_labels(source.source)
    labels = getattr(source, "labels", None)  # where the images need not be read
    if labels is None and len(source) and "label" in source[0]:
        return np.array([source[i]["label"] for i in range(len(source))])
    return labels
