"""The two ways in which examples reach the device, in an order that is given.

A source that draws its training examples (crops) does so from a generator that is a
function of (seed, k, position in the global batch).

A loader gives one *feed* per step, the host's part of a batch, and `fetch`, which turns
it into a batch inside the jitted step:

  - `ResidentLoader`: all images live on the device as uint8; a feed is their indices.
  - `StreamedLoader`: Grain reads ahead in threads or workers; a feed is the images.

Batches are `{"image": uint8 [N, H, W, C], ...}`: every further entry is a target, an
array `[N, ...]` that means what the task says. Training batches are always full.
Evaluation batches are padded and carry `"mask"`, bool `[N]`, so that every example
counts once: False for padding. It is False too for what stands in for an image that
cannot be decoded (`SkippingSource`). Each such image is named once, by a warning of the
process that consumes the feeds.
"""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, Protocol, cast

import jax
import numpy as np

from jaxattn.data.order import WHOLE, Slice, TrainOrder, evaluation_order
from jaxattn.data.source import (
    NOT_TARGETS,
    ArraySource,
    DrawingSource,
    Example,
    Source,
)
from jaxattn.errors import UserError, choose, require

Feed = dict[str, np.ndarray]
Batch = dict[str, jax.Array]

_FEW = 8  # examples
_MAX_READERS = 1024  # of each kind; many more end the machine
# Above this a data set is streamed unless the config says "resident". CIFAR is 0.15 GB.
_MAX_RESIDENT_BYTES = 2**30

# Tells the draws of a source from those of the order, whose seed is (seed, epoch).
_DRAW_STREAM = 1

logger = logging.getLogger(__name__)


def targets_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the targets of an example or a batch by their key."""
    return {key: batch[key] for key in batch if key not in NOT_TARGETS}


class _Skipped:
    """Names each skipped image of a split once, and counts them."""

    def __init__(self) -> None:
        self._errors: set[str] = set()

    def report(self, errors: Iterable[str | None]) -> None:
        """Names the images that are new; None is no error."""
        for error in errors:
            if error is not None and error not in self._errors:
                self._errors.add(error)
                logger.warning("%s; skipped, %d so far", error, len(self._errors))


class Loader(Protocol):
    """What the training loop needs of a loader."""

    @property
    def store(self) -> dict[str, np.ndarray]:
        """Arrays to place on every device once; `fetch` reads them."""
        ...

    def train_feeds(self, order: TrainOrder, start: int, stop: int) -> Iterator[Feed]:
        """Yields this process's feed for each step in `[start, stop)`."""
        ...

    def evaluation_feeds(self, batch_size: int) -> Iterator[Feed]:
        """Yields this process's feeds that cover every example once."""
        ...

    @staticmethod
    def fetch(store: Batch, feed: Batch) -> Batch:
        """Returns the batch of a feed; runs inside the jitted step."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ResidentLoader:
    """Feeds indices into images that live on the device.

    Attributes:
        source: The images.
        part: Of every batch, that this process feeds.
        skipped: Positions of stand-ins, which evaluation leaves out.
    """

    source: ArraySource
    part: Slice = WHOLE
    skipped: tuple[int, ...] = ()

    @property
    def store(self) -> dict[str, np.ndarray]:
        """uint8 images `[n, H, W, C]`, and targets `[n, ...]` by their key."""
        return {"image": self.source.images, **self.source.targets}

    def train_feeds(self, order: TrainOrder, start: int, stop: int) -> Iterator[Feed]:
        """Yields `{"index": int32}` for each step in `[start, stop)`."""
        for step in range(start, stop):
            yield {"index": self.part.take(order(step))}

    def evaluation_feeds(self, batch_size: int) -> Iterator[Feed]:
        """Yields `{"index": int32, "mask": bool}`."""
        for index, mask in evaluation_order(len(self.source), batch_size):
            mask = mask & ~np.isin(index, self.skipped)
            yield {"index": self.part.take(index), "mask": self.part.take(mask)}

    @staticmethod
    def fetch(store: Batch, feed: Batch) -> Batch:
        """Gathers the images and targets of the indices."""
        batch = {key: values[feed["index"]] for key, values in store.items()}
        return batch | ({"mask": feed["mask"]} if "mask" in feed else {})


class _TrainExamples:
    """A process's training examples in the order of their use, for Grain."""

    def __init__(
        self, source: Source, order: TrainOrder, part: Slice, start: int, stop: int
    ) -> None:
        self._source, self._order, self._part = source, order, part
        self._start, self._stop = start, stop
        self._local = order.batch_size // part.count

    def __len__(self) -> int:
        return (self._stop - self._start) * self._local

    def __getitem__(self, position: int) -> Feed:
        steps, i = divmod(int(position), self._local)
        step = self._start + steps
        index = int(self._part.take(self._order(step))[i])
        if not isinstance(self._source, DrawingSource):
            return _feed(self._source[index])
        place = self._part.index * self._local + i  # in the global batch
        seed = (self._order.seed, step, place, _DRAW_STREAM)
        return _feed(self._source.draw(index, np.random.default_rng(seed)))


class _EvaluationExamples:
    """A process's evaluation examples, padded and masked, for Grain."""

    def __init__(self, source: Source, batch_size: int, part: Slice) -> None:
        self._source = source
        pairs = list(evaluation_order(len(source), batch_size))
        self._index = np.concatenate([part.take(index) for index, _ in pairs])
        self._mask = np.concatenate([part.take(mask) for _, mask in pairs])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, position: int) -> Feed:
        example = self._source[int(self._index[position])]
        mask = self._mask[position] & ("error" not in example)
        return _feed(example) | {"mask": mask}


def _feed(example: Example) -> Feed:
    # As an object an error goes through Grain's workers, whatever its length.
    error = np.asarray(example.get("error"), object)
    return {
        "image": example["image"],
        **{key: _as_array(value) for key, value in targets_of(example).items()},
        "error": error,
    }


def _as_array(value: Any) -> np.ndarray:
    return np.asarray(value, np.int32 if isinstance(value, int) else None)


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedLoader:
    """Feeds images that Grain reads ahead.

    Attributes:
        source: Random access to examples.
        part: Of every batch, that this process feeds.
        num_workers: Reading processes; 0 reads in threads, which on few cores is
            faster and starts at once.
        num_threads: Reading threads, where there are no workers.
    """

    source: Source
    part: Slice = WHOLE
    num_workers: int = 0
    num_threads: int = 8
    _skipped: _Skipped = dataclasses.field(default_factory=_Skipped, init=False)

    @property
    def store(self) -> dict[str, np.ndarray]:
        """Nothing."""
        return {}

    def train_feeds(self, order: TrainOrder, start: int, stop: int) -> Iterator[Feed]:
        """Yields `{"image": uint8, ...}` for steps in `[start, stop)`."""
        examples = _TrainExamples(self.source, order, self.part, start, stop)
        return self._batches(examples, order.batch_size)

    def evaluation_feeds(self, batch_size: int) -> Iterator[Feed]:
        """Yields `{"image": uint8, ..., "mask": bool}`."""
        examples = _EvaluationExamples(self.source, batch_size, self.part)
        return self._batches(examples, batch_size)

    @staticmethod
    def fetch(store: Batch, feed: Batch) -> Batch:
        """The feed is the batch."""
        del store
        return feed

    def _batches(self, examples: Any, batch_size: int) -> Iterator[Feed]:
        local = batch_size // self.part.count
        is_few = len(examples) <= _FEW and not self.num_workers
        read = _read_few if is_few else self._read_ahead
        with contextlib.closing(read(examples, local)) as batches:
            for batch in batches:
                # Here, for what reads ahead may be another process.
                self._skipped.report(batch.pop("error"))
                yield batch

    def _read_ahead(self, examples: Any, local: int) -> Generator[Feed, None, None]:
        import grain

        data = grain.MapDataset.source(examples)
        if self.num_workers:
            _allow_workers()
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
            workers = grain.MultiprocessingOptions(num_workers=self.num_workers)
            # Grain deals out what is in the map, so it must be whole batches.
            data = data.batch(local).to_iter_dataset(options).mp_prefetch(workers)
        else:
            # Of fewer than it has threads Grain warns.
            ahead = max(4 * local, self.num_threads)
            options = grain.ReadOptions(
                num_threads=self.num_threads, prefetch_buffer_size=ahead
            )
            data = data.to_iter_dataset(options).batch(local)
        iterator = iter(data)
        try:
            yield from iterator
        finally:
            # Left open, Grain's readers complain when the interpreter goes.
            iterator.close()


def _read_few(examples: Any, local: int) -> Generator[Feed, None, None]:
    """Reads examples without Grain, whose import takes longer than reading them."""
    for start in range(0, len(examples), local):
        batch = [examples[i] for i in range(start, start + local)]
        yield jax.tree.map(lambda *leaves: np.stack(leaves), *batch)


# Of a run that is stopped, batches of Grain's are under way in shared memory, which
# Python's tracker clears up; it starts with these options.
_QUIET_TRACKER = "ignore:resource_tracker:UserWarning"


def _allow_workers() -> None:
    """Lets Grain start workers in a program that parses no absl flags."""
    from absl import flags

    if _QUIET_TRACKER not in sys.warnoptions:
        sys.warnoptions.append(_QUIET_TRACKER)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def check_loader(
    *, loader: str = "auto", num_workers: int = 0, num_threads: int = 1
) -> None:
    """Checks those arguments of `make_loader` that need no data.

    Raises:
        UserError: If a value is out of its range.
    """
    choose("pipeline.loader", loader, ("auto", "resident", "streamed"))
    for key, value, least in (("workers", num_workers, 0), ("threads", num_threads, 1)):
        holds = least <= value <= _MAX_READERS
        wanted = f"in [{least}, {_MAX_READERS}]"
        require(f"pipeline.num_{key}", value, holds, wanted)


def make_loader(
    source: Source,
    part: Slice | None = None,
    /,
    *,
    loader: str = "auto",
    num_workers: int = 0,
    num_threads: int = 8,
) -> Loader:
    """Returns the loader of a source for this process.

    Args:
        source: Examples of one split.
        part: Of every batch; by default this process's.
        loader: "resident", "streamed", or "auto": resident if the images take at most
            1 GiB and are the same at every use.
        num_workers: Reading processes of the streamed loader; 0 reads in threads.
        num_threads: Reading threads of the streamed loader.

    Raises:
        UserError: If a value is out of its range, or does not fit the source.
    """
    check_loader(loader=loader, num_workers=num_workers, num_threads=num_threads)
    if isinstance(source, DrawingSource):
        if loader == "resident":
            raise UserError(
                "pipeline.loader='resident': the training images are cropped at random "
                "when they are read, so they cannot stay on the device; use 'streamed',"
                " or for no random crops data.crop_scale=(1.0, 1.0), of label maps"
                " data.scale_range=(1.0, 1.0) without data.crop_size"
            )
        loader = "streamed"
    if loader == "auto":
        size = len(source) * np.asarray(source[0]["image"]).nbytes
        loader = "resident" if size <= _MAX_RESIDENT_BYTES else "streamed"
    part = part or Slice(jax.process_index(), jax.process_count())
    if loader == "resident":
        return cast(Loader, _make_resident(source, part))
    return cast(Loader, StreamedLoader(source, part, num_workers, num_threads))


def _make_resident(source: Source, part: Slice) -> ResidentLoader:
    """Reads all examples into memory."""
    if isinstance(source, ArraySource):
        return ResidentLoader(source, part)
    examples = [source[i] for i in range(len(source))]
    _Skipped().report(example.get("error") for example in examples)
    targets = [targets_of(example) for example in examples]
    arrays = ArraySource(
        np.stack([example["image"] for example in examples]),
        {key: np.stack([_as_array(t[key]) for t in targets]) for key in targets[0]},
    )
    skipped = tuple(i for i, example in enumerate(examples) if "error" in example)
    return ResidentLoader(arrays, part, skipped)
