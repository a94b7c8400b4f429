import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxattn import UserError
from jaxattn.data import load_data
from jaxattn.data.pipeline import (
    ResidentLoader,
    Slice,
    StreamedLoader,
    TrainOrder,
    evaluation_order,
    make_loader,
)
from jaxattn.data.source import (
    ArraySource,
    DrawingSubset,
    SkippingSource,
    Subset,
    labelled,
    skip_bad_images,
)

LOADERS = [ResidentLoader, StreamedLoader]


@pytest.fixture
def source():
    images = np.arange(23, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 2, 2, 3), np.uint8
    )
    return labelled(images, np.arange(23, dtype=np.int32))


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
    assert make_loader(source).source is source


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.bool_])
@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_targets_keep_their_dtype_in_both_ways(dtype, shape):
    target = np.ones(shape, dtype)
    source = ArraySource(np.zeros((3, 2, 2, 3), np.uint8), {"target": target})
    for make in LOADERS:
        loader = make(source)
        (feed,) = loader.evaluation_feeds(3)
        found = loader.fetch(loader.store, feed)["target"]
        assert (found.dtype, found.shape) == (dtype, shape)


@pytest.mark.parametrize("key", ["image", "mask", "error"])
def test_the_loaders_own_keys_are_no_targets(key):
    with pytest.raises(UserError, match=f"targets={key!r}: must be another key"):
        ArraySource(np.zeros((3, 2, 2, 3), np.uint8), {key: np.zeros(3)})


def test_large_sources_are_streamed():
    class Large:
        def __len__(self):
            return 2**20

        def __getitem__(self, index):
            return {"image": np.zeros((32, 32, 3), np.uint8), "label": 0}

    assert isinstance(make_loader(Large()), StreamedLoader)


class Drawing(ArraySource):
    """Draws a number beside each image."""

    def draw(self, index, rng):
        number = rng.integers(256, size=(1, 1, 3), dtype=np.uint8)
        return {"image": number, "label": index}


def drawn_batches(source, start, stop, part=Slice(), seed=3):  # noqa: B008
    order = TrainOrder(len(source), 8, seed)
    feeds = list(StreamedLoader(source, part).train_feeds(order, start, stop))
    labels = np.stack([feed["label"] for feed in feeds])
    return np.stack([feed["image"][:, 0, 0] for feed in feeds]), labels


@pytest.fixture
def drawing(source):
    return Drawing(source.images, source.targets)


def test_draws_are_of_their_own_at_every_step_and_place(drawing):
    drawn, labels = drawn_batches(drawing, 0, 8)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == drawn.size // 3
    assert len(set(labels.ravel())) == 23
    other, _ = drawn_batches(drawing, 0, 8, seed=4)
    assert not np.any(np.all(drawn == other, axis=-1))


def test_draws_are_not_those_of_the_order(drawing):
    # NumPy's seeds (3, 0) and (3, 0, 0) are the same.
    drawn, _ = drawn_batches(drawing, 0, 1)
    expected = np.random.default_rng((3, 0)).integers(256, size=3, dtype=np.uint8)
    assert not np.array_equal(drawn[0, 0], expected)


def test_draws_resume_at_any_step(drawing):
    whole, resumed = drawn_batches(drawing, 0, 8), drawn_batches(drawing, 5, 8)
    for one, two in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(one[5:], two)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_draws_of_one(count, drawing):
    whole = drawn_batches(drawing, 2, 5)
    parts = [drawn_batches(drawing, 2, 5, Slice(i, count)) for i in range(count)]
    for one, joined in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(one, np.concatenate(joined, axis=1))


def test_evaluation_does_not_draw(drawing):
    loader = StreamedLoader(drawing)
    list(batches(loader, loader.evaluation_feeds(8)))


@pytest.mark.parametrize("cut", [False, True])
def test_sources_that_draw_are_streamed(cut, drawing):
    source = DrawingSubset(drawing, np.arange(4)) if cut else drawing
    assert isinstance(make_loader(source), StreamedLoader)
    message = r"pipeline\.loader='resident': .*cropped at random.*'streamed'"
    with pytest.raises(UserError, match=message):
        make_loader(source, loader="resident")


@pytest.fixture
def photos(tmp_path):
    """A source of photos of many sizes."""
    rng = np.random.default_rng(0)
    for split, name, i in itertools.product(("train", "val"), "ab", range(5)):
        path = tmp_path / split / name / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    path = str(tmp_path)
    data = load_data("imagefolder", path=path, image_size=8, val_fraction=0.2)
    return data.train


def test_random_crops_are_the_same_on_two_processes_and_after_a_resume(photos):
    order = TrainOrder(len(photos), 4, seed=1)

    def crops(start, part):
        feeds = StreamedLoader(photos, part).train_feeds(order, start, 6)
        return np.stack([feed["image"] for feed in feeds])

    whole = crops(0, Slice())
    parts = [crops(0, Slice(i, 2)) for i in range(2)]
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))
    np.testing.assert_array_equal(whole[3:], crops(3, Slice()))
    assert not np.array_equal(whole[:2], whole[2:4])


@pytest.mark.parametrize("kind", ["train", "evaluation"])
def test_broken_image_is_one_line_through_the_loader(kind, photos, tmp_path):
    broken = tmp_path / "train" / "b" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    loader = StreamedLoader(Subset(photos.source, np.arange(10)))
    if kind == "train":
        feeds = loader.train_feeds(TrainOrder(10, 5, seed=0), 0, 2)
    else:
        feeds = loader.evaluation_feeds(5)
    with pytest.raises(UserError, match="not a readable image") as excinfo:
        list(feeds)
    assert str(excinfo.value).startswith(f"{broken}: ")
    assert "\n" not in str(excinfo.value)


@pytest.fixture
def damaged(photos, tmp_path):
    """Ten photos, of which numbers 3, 8 and 9 are cut short and to be skipped."""
    for name in ("a/3.jpg", "b/3.jpg", "b/4.jpg"):
        path = tmp_path / "train" / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 3 // 4])
    return skip_bad_images(photos.source)


def stand_in_batches(source, start=0, part=Slice(), **options):  # noqa: B008
    """Images and labels of two epochs in batches of 6, from a step on."""
    order = TrainOrder(10, 6, seed=1)
    feeds = list(StreamedLoader(source, part, **options).train_feeds(order, start, 4))
    assert set(feeds[0]) == {"image", "label"}
    return [np.stack([feed[key] for feed in feeds]) for key in ("image", "label")]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_next_image_stands_in_for_a_bad_one(num_workers, damaged, caplog):
    images, labels = stand_in_batches(damaged, num_workers=num_workers)
    order = TrainOrder(10, 6, seed=1)
    for step, place in np.ndindex(4, 6):
        index = int(order(step)[place])
        index = {3: 4, 8: 0, 9: 0}.get(index, index)
        rng = np.random.default_rng((1, step, place, 1))
        expected = damaged.source.draw(index, rng)
        np.testing.assert_array_equal(images[step, place], expected["image"])
        assert labels[step, place] == expected["label"]
    # Each is named once, in two epochs.
    lines = [record.getMessage() for record in caplog.records]
    named = [
        re.search(r"train/(.*): not a readable image \(.+\);", x)[1] for x in lines
    ]
    assert sorted(named) == ["a/3.jpg", "b/3.jpg", "b/4.jpg"]
    assert [re.search(r"; (.*)\Z", x)[1] for x in lines] == [
        f"skipped, {count} so far" for count in (1, 2, 3)
    ]


def test_stand_ins_are_the_same_on_two_processes_and_after_a_resume(damaged):
    whole, resumed = stand_in_batches(damaged), stand_in_batches(damaged, start=2)
    parts = [stand_in_batches(damaged, part=Slice(i, 2)) for i in range(2)]
    for one, two, joined in zip(whole, resumed, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(one[2:], two)
        np.testing.assert_array_equal(one, np.concatenate(joined, axis=1))


@pytest.mark.parametrize("make", ["resident", "streamed"])
def test_evaluation_leaves_bad_images_out(make, damaged, caplog):
    centers = SkippingSource(damaged.source)
    counted = []
    for i in range(2):
        loader = make_loader(centers, Slice(i, 2), loader=make)
        for feed in loader.evaluation_feeds(4):
            batch = loader.fetch(loader.store, feed)
            assert batch["image"].shape == (2, 8, 8, 3)
            assert set(batch) == {"image", "label", "mask"}
            counted += [x.tobytes() for x in batch["image"][batch["mask"]]]
    good = [i for i in range(10) if i not in (3, 8, 9)]
    expected = [centers.source[i]["image"].tobytes() for i in good]
    assert sorted(counted) == sorted(expected)
    assert "3.jpg: not a readable image" in caplog.text


def test_resident_stand_ins_are_trained_on(damaged):
    centers = SkippingSource(damaged.source)
    loader = make_loader(centers, loader="resident")
    for i, instead in ((3, 4), (8, 0), (9, 0), (5, 5)):
        expected = centers.source[instead]
        np.testing.assert_array_equal(loader.store["image"][i], expected["image"])
        assert loader.store["label"][i] == expected["label"]


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


def test_a_small_batch_is_read_without_a_word_of_grains(source, caplog):
    loader = make_loader(source, loader="streamed")
    assert len(list(loader.evaluation_feeds(1))) == len(source)
    assert caplog.text == ""


@pytest.mark.full
def test_what_a_stopped_run_leaves_in_shared_memory_is_cleared_without_a_word(tmp_path):
    """Grain's workers may have batches under way; six times, since they may not."""
    code = """
import numpy as np
from jaxattn.data.pipeline import StreamedLoader, TrainOrder
from jaxattn.data.source import labelled
if __name__ == "__main__":
    source = labelled(np.zeros((64, 64, 64, 3), np.uint8), np.zeros(64, np.int32))
    for _ in range(6):
        feeds = StreamedLoader(source, num_workers=2).train_feeds(
            TrainOrder(64, 16, 0), 0, 40
        )
        next(feeds)
        feeds.close()
"""
    script = tmp_path / "main.py"  # Grain's workers need a main module to start from
    script.write_text(code)
    command = [sys.executable, str(script)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
