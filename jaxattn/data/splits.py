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
from jaxattn.text import some_of


def hold_out(data: Data, fraction: float, seed: int) -> Data:
    """Returns the data with a part of the training split as validation split.

    A class whose every image would be held out keeps one for training, and the class
    with the most gives one in its place; a note says so.

    Args:
        data: Without a validation split.
        fraction: The part of the training split, in [0, 1); 0 holds out nothing.
        seed: Of the choice.

    Raises:
        UserError: One of the two parts is empty.
    """
    if fraction == 0:
        return data
    strata = _strata(data.train)
    train, val = stratified_split(strata, fraction, seed)
    lost = np.setdiff1d(strata, strata[train])
    for label in lost if len(train) else ():
        train, val = _keep_one(label, strata, train, val)
    if len(train) == 0 or len(val) == 0:
        raise UserError(
            f"data.val_fraction={fraction}: splits the {len(data.train)} training "
            f"examples into {len(train)} and {len(val)}; use 0 to hold out none"
        )
    note = "kept an image for training, though data.val_fraction would hold out all, of"
    return replace(
        data,
        train=_take_train(data.train, train),
        val=take(data.train, val),
        notes=(*data.notes, *_note_classes(data, lost, note)),
    )


def _keep_one(
    label: int, strata: np.ndarray, train: np.ndarray, val: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Moves a stratum's first position from `val` to `train`, and another one back.

    That is the last one of the stratum with the most in `train`, if it has others.
    """
    kept = val[strata[val] == label][:1]
    labels, counts = np.unique(strata[train], return_counts=True)
    given = train[:0]
    if counts.max(initial=0) > 1:
        given = train[strata[train] == labels[np.argmax(counts)]][-1:]
    train, val = np.setdiff1d(train, given), np.setdiff1d(val, kept)
    return np.union1d(train, kept), np.union1d(val, given)


def thin(
    data: Data, max_train_examples: int | None, max_eval_examples: int | None = None
) -> Data:
    """Returns the data with at most so many examples; None keeps all.

    Args:
        data: Any.
        max_train_examples: Of the training split.
        max_eval_examples: Of the validation split, and as many of the test split.
    """
    train = _thinned(data.train, max_train_examples, _take_train)
    lost = np.setdiff1d(_strata(data.train), _strata(train))
    note = f"data.max_train_examples={max_train_examples} leaves no training image of"
    return replace(
        data,
        train=train,
        val=data.val and _thinned(data.val, max_eval_examples, take),
        test=_thinned(data.test, max_eval_examples, take),
        notes=(*data.notes, *_note_classes(data, lost, note)),
    )


def _thinned(
    source: Source, most: int | None, taken: Callable[[Source, np.ndarray], Source]
) -> Source:
    if most is None or len(source) <= most:
        return source
    # Part of an experiment's definition, so its seed is constant.
    _, kept = stratified_split(_strata(source), most / len(source), seed=0)
    return taken(source, kept)


def _note_classes(data: Data, classes: np.ndarray, text: str) -> list[str]:
    """Says something of classes; nothing where there are none."""
    names = [data.class_names[int(label)] for label in classes]
    return [f"{text} {some_of(names)}"] if names else []


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


def _find_labels(source: Source, *, skips: bool = False) -> np.ndarray | None:
    """The labels, None where the target is something else."""
    if isinstance(source, Subset):
        labels = _find_labels(source.source, skips=skips)
        return None if labels is None else labels[source.indices]
    if isinstance(source, SkippingSource):
        return _find_labels(source.source, skips=True)
    labels = getattr(source, "labels", None)  # where the images need not be read
    if labels is not None or not len(source):
        return labels
    read = skip_bad_images(source) if skips else source
    has_label = "label" in read[0]
    return np.array([read[i]["label"] for i in range(len(read))]) if has_label else None
