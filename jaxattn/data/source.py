"""What an example is, and where examples come from: the contract of all data sets.

A data set is a `Data` of indexable sources. Small ones are arrays in memory
(`ArraySource`); others stay on disk and are decoded on access.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxattn.errors import UserError, require
from jaxattn.text import printable

Example = dict[str, Any]
"""One image and its target.

`image` is uint8 `[H, W, C]`. All other keys are the target: for classification `label`,
an int. Where an example stands in for another whose image cannot be decoded, `error`
says why.
"""


NOT_TARGETS = ("image", "mask", "error")
"""Keys of examples and of batches of them that are no targets; the trainer's own."""


class BadImageError(UserError):
    """An image whose content cannot be decoded."""


class Source(Protocol):
    """An indexable collection of examples."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The example at a position in `[0, len)`."""
        ...


@runtime_checkable
class DrawingSource(Source, Protocol):
    """A source whose training examples are drawn anew at every use.

    Its `[index]` is the example as evaluation shows it.
    """

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """Draws a training example from what is at a position in `[0, len)`."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Examples in memory.

    Attributes:
        images: uint8 `[N, H, W, C]`.
        targets: The targets by their keys, each `[N, ...]`.

    Raises:
        UserError: A dtype or shape is another, or the lengths differ.
    """

    images: np.ndarray
    targets: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        """Checks the arrays."""
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise UserError(
                f"images: {_describe(self.images)}, must be uint8 [N, H, W, C]"
            )
        N = len(self.images)
        for key, values in self.targets.items():
            require("targets", key, key not in NOT_TARGETS, "another key")
            if values.shape[:1] != (N,):
                raise UserError(f"{key}: {_describe(values)}, must be [{N}, ...]")

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        """The example at a position."""
        targets = {key: values[index] for key, values in self.targets.items()}
        for key, value in targets.items():
            if value.ndim == 0 and value.dtype == np.int32:  # as loaders make of an int
                targets[key] = int(value)
        return {"image": self.images[index], **targets}

    @property
    def labels(self) -> np.ndarray:
        """All labels, int32 `[N]`, where the target is a class."""
        if "label" not in self.targets:
            raise AttributeError(f"no label among {sorted(self.targets)}")
        return self.targets["label"]


def labelled(images: np.ndarray, labels: np.ndarray) -> ArraySource:
    """Returns images in memory with their classes.

    Args:
        images: uint8 `[N, H, W, C]`.
        labels: int32 `[N]`.

    Raises:
        UserError: A dtype or shape is another, or the lengths differ.
    """
    if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
        raise UserError(f"labels: {_describe(labels)}, must be int32 [{len(images)}]")
    return ArraySource(images, {"label": labels})


def spread(length: int, count: int) -> list[int]:
    """Returns at most `count` indices from all over a sequence, in its order."""
    return [int(i) for i in np.linspace(0, length - 1, min(count, length)).round()]


def describe_numbering(class_names: Sequence[str]) -> str | None:
    """Says how classes are numbered, where a number could be taken for a name."""
    for i, name in enumerate(class_names):
        if name.isdecimal() and name != str(i):
            return (
                "classes are numbered in the alphabetical order of their names: number"
                f" {i} is class {name}"
            )
    return None


def digest(*arrays: np.ndarray) -> str:
    """Returns what tells arrays from others, their shapes and dtypes among it."""
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(f"{array.dtype}{array.shape}".encode())
        sha256.update(np.ascontiguousarray(array).data)
    return f"sha256 {sha256.hexdigest()[:16]}"


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


@dataclass(frozen=True, eq=False)
class Subset:
    """The examples of a source at some positions, read when asked for.

    Attributes:
        source: Where the examples are.
        indices: Positions in it, int `[N]`.
    """

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        """The example at a position of the subset."""
        return self.source[int(self.indices[index])]


@dataclass(frozen=True, eq=False)
class DrawingSubset(Subset):
    """A subset whose training examples are drawn as those of its source.

    Attributes:
        source: Where the examples are.
        indices: Positions in it, int `[N]`.
    """

    source: DrawingSource

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """Draws a training example from what is at a position of the subset."""
        return self.source.draw(int(self.indices[index]), rng)


@dataclass(frozen=True, eq=False)
class SkippingSource:
    """A source in which the next image stands in for one that cannot be decoded.

    The first one is next to the last. A stand-in comes with its own target, and with
    the `error` of the image that was asked for.

    Attributes:
        source: Raises `BadImageError` where an image cannot be decoded.
    """

    source: Source
    # By position, what is wrong with the images known to be bad: each is tried once,
    # or many side by side would be tried again for each of them.
    _faults: dict[int, str] = dataclasses.field(default_factory=dict, init=False)

    def __len__(self) -> int:
        """The number of examples, those that cannot be decoded included."""
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        """The example at a position, or the one that stands in for it."""
        return self._read_next(index, self.source.__getitem__)

    def _read_next(self, index: int, read: Callable[[int], Example]) -> Example:
        errors = []
        for i in range(len(self)):
            position = (index + i) % len(self)
            try:
                if position in self._faults:
                    raise BadImageError(self._faults[position])
                example = read(position)
            except BadImageError as error:
                self._faults[position] = str(error)
                errors.append(str(error))
            else:
                return {**example, "error": errors[0]} if errors else example
        raise UserError(
            f"data.on_bad_image='skip': none of the {len(self)} images of a split can "
            f"be decoded; {errors[0]}"
        )


@dataclass(frozen=True, eq=False)
class DrawingSkippingSource(SkippingSource):
    """A skipping source whose training examples are drawn as those of its source.

    Attributes:
        source: Raises `BadImageError` where an image cannot be decoded.
    """

    source: DrawingSource

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """Draws a training example; from a stand-in as if that had been asked for."""
        state = rng.bit_generator.state

        def draw(position: int) -> Example:
            rng.bit_generator.state = state  # a failed attempt may have drawn
            return self.source.draw(position, rng)

        return self._read_next(index, draw)


def skip_bad_images(source: Source) -> SkippingSource:
    """Returns a source with stand-ins for the images that cannot be decoded."""
    if isinstance(source, DrawingSource):
        return DrawingSkippingSource(source)
    return SkippingSource(source)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: its splits and what they have in common.

    Attributes:
        name: The name it was loaded by.
        train: Training examples.
        val: Examples held out of training, None if there are none.
        test: Test examples.
        class_names: The name of each label; what cannot be shown of it is escaped.
        image_shape: `(H, W, C)` of every image, as the source gives it.
        resize_px: The shorter side in pixels that images of many sizes were scaled to,
            before evaluation's crop; None for images of one size.
        is_canvas: Evaluation shows images whole, scaled down and padded where needed
            (`jaxattn.data.preprocess.Canvas`), rather than cropped.
        class_colors: Red, green and blue of each class, 0 to 255, in which pictures
            show it; None leaves the choice to them.
        files: What was read, by part: a digest, or as much as is cheap to know of
            files that are read later. A run is resumed with the same alone.
        notes: What a person should know of how it was read, a line each.
    """

    name: str
    train: Source
    val: Source | None
    test: Source
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    resize_px: int | None = None
    is_canvas: bool = False
    class_colors: tuple[tuple[int, int, int], ...] | None = None
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Makes the names fit for reports, tables and pictures."""
        object.__setattr__(self, "class_names", tuple(map(printable, self.class_names)))

    @property
    def splits(self) -> dict[str, Source]:
        """The splits that there are, by "train", "val" and "test"."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: source for name, source in named.items() if source is not None}

    def describe(self) -> str:
        """Returns how many images of how many classes there are, in half a line."""
        names = {"train": "training", "val": "validation"}
        counts = [f"{len(s):,} {names.get(n, n)}" for n, s in self.splits.items()]
        head, last = ", ".join(counts[:-1]), counts[-1]
        return f"{head} and {last} images of {self.num_classes:,} classes"

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)
