import itertools

import numpy as np
import pytest

from jaxattn import UserError
from jaxattn.data.pipeline import (
    ResidentLoader,
    Slice,
    StreamedLoader,
    TrainOrder,
    evaluation_order,
    make_loader,
    to_arrays,
)
from jaxattn.data.source import ArraySource, Subset

LOADERS = [ResidentLoader, StreamedLoader]


@pytest.fixture
def source():
    images = np.arange(23, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 2, 2, 3), np.uint8
    )
    return ArraySource(images, np.arange(23, dtype=np.int32))


def batches(loader, feeds):
    """Labels (which are the indices) of each batch, images checked against them."""
    for feed in feeds:
        batch = loader.fetch(loader.store, feed)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
        yield batch


@pytest.mark.parametrize("batch_size", [1, 5, 8, 23, 40])
def test_every_example_is_in_every_epoch(batch_size):
    order = TrainOrder(23, batch_size, seed=0)
    for epoch in range(3):
        first = epoch * order.steps_per_epoch
        steps = range(first, first + order.steps_per_epoch)
        indices = np.concatenate([order(step) for step in steps])
        assert set(indices) == set(range(23))
        assert len(indices) == order.steps_per_epoch * batch_size
        # Each once, and the last batch completed from the start of the permutation.
        assert len(set(indices[:23])) == 23
        np.testing.assert_array_equal(
            indices[23:], np.resize(indices[:23], len(indices))[23:]
        )


def test_every_epoch_and_seed_has_its_own_order():
    order, other = TrainOrder(23, 23, seed=0), TrainOrder(23, 23, seed=1)
    assert not np.array_equal(order(0), order(1))
    assert not np.array_equal(order(0), other(0))
    np.testing.assert_array_equal(order(1), TrainOrder(23, 23, seed=0)(1))


@pytest.mark.parametrize("make", LOADERS)
def test_loaders_follow_the_order(make, source):
    order, loader = TrainOrder(23, 8, seed=3), make(source)
    feeds = loader.train_feeds(order, 0, 7)
    labels = [batch["label"] for batch in batches(loader, feeds)]
    np.testing.assert_array_equal(labels, [order(step) for step in range(7)])


@pytest.mark.parametrize("make", LOADERS)
def test_loaders_resume_at_any_step(make, source):
    order, loader = TrainOrder(23, 8, seed=3), make(source)
    feeds = loader.train_feeds(order, 5, 8)
    labels = [batch["label"] for batch in batches(loader, feeds)]
    np.testing.assert_array_equal(labels, [order(step) for step in (5, 6, 7)])


@pytest.mark.parametrize("make", LOADERS)
def test_processes_share_the_batches_of_one(make, source):
    order = TrainOrder(23, 8, seed=3)
    parts = [
        [b["label"] for b in batches(loader, loader.train_feeds(order, 2, 5))]
        for loader in (make(source, Slice(i, 4)) for i in range(4))
    ]
    joined = np.concatenate(parts, axis=1)
    np.testing.assert_array_equal(joined, [order(step) for step in (2, 3, 4)])


@pytest.mark.parametrize("make", LOADERS)
@pytest.mark.parametrize("batch_size", [4, 8, 24, 32])
def test_evaluation_shows_every_example_once(make, batch_size, source):
    seen = []
    for index in range(2):
        loader = make(source, Slice(index, 2))
        for batch in batches(loader, loader.evaluation_feeds(batch_size)):
            assert len(batch["label"]) == batch_size // 2
            seen.extend(np.asarray(batch["label"])[np.asarray(batch["mask"])])
    assert sorted(seen) == list(range(23))


def test_evaluation_batches_are_all_of_one_size():
    sizes = {len(mask) for _, mask in evaluation_order(23, 8)}
    assert sizes == {8}


def test_a_stream_can_be_left_before_its_end(source):
    loader = StreamedLoader(source)
    feeds = loader.train_feeds(TrainOrder(23, 8, seed=0), 0, 1000)
    assert len(list(itertools.islice(feeds, 2))) == 2
    feeds.close()


def test_small_sources_become_resident(source):
    subset = Subset(source, np.array([3, 1, 4]))
    loader = make_loader(subset)
    assert isinstance(loader, ResidentLoader)
    np.testing.assert_array_equal(loader.store["label"], [3, 1, 4])
    assert isinstance(make_loader(source, loader="streamed"), StreamedLoader)


def test_arrays_are_not_copied(source):
    assert to_arrays(source) is source


def test_large_sources_are_streamed():
    class Large:
        def __len__(self):
            return 2**20

        def __getitem__(self, index):
            return {"image": np.zeros((32, 32, 3), np.uint8), "label": 0}

    assert isinstance(make_loader(Large()), StreamedLoader)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"loader": "lazy"}, r"pipeline.loader='lazy': choices: auto, resident"),
        ({"num_workers": -1}, r"pipeline.num_workers=-1"),
    ],
)
def test_mistakes_are_named(source, kwargs, message):
    with pytest.raises(UserError, match=message):
        make_loader(source, **kwargs)
