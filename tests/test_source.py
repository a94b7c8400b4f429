import gzip
import io
import os
import pathlib
import pickle
import tarfile
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from jaxattn import web
from jaxattn.data import load_data, read_labels
from jaxattn.data.datasets import tfds as loader
from jaxattn.data.datasets.archives import LAYOUTS, read_pickle
from jaxattn.data.datasets.cifar import CIFAR10_CLASSES
from jaxattn.data.source import ArraySource, Data, DrawingSource, Subset, labelled
from jaxattn.data.splits import hold_out, stratified_split, take, thin
from jaxattn.errors import UserError


def make_images(num_examples, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num_examples, 32, 32, 3), dtype=np.uint8)


def make_batch(images, labels, label_key="labels", protocol=2):
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    batch = {"data": np.ascontiguousarray(rows), label_key: labels}
    return pickle.dumps(batch, protocol=protocol)


def write_folder(root, name="cifar10", per_file=20, with_names=True):
    """An unpacked CIFAR folder; file i holds `make_images(per_file, seed=i)`."""
    layout = LAYOUTS[name]
    folder = root / layout.folder
    folder.mkdir(parents=True)
    labels = [i % layout.num_classes for i in range(per_file)]
    for seed, file in enumerate((*layout.train_files, *layout.test_files)):
        batch = make_batch(make_images(per_file, seed), labels, layout.label_key)
        (folder / file).write_bytes(batch)
    if with_names:
        names = [f"name {i}".encode() for i in range(layout.num_classes)]
        meta = pickle.dumps({layout.class_names_key: names}, protocol=2)
        (folder / layout.meta_file).write_bytes(meta)
    return folder


def write_tar(folder):
    path = folder.parent / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname=folder.name)
    return path


def write_npz(path, **changes):
    arrays = {
        "x_train": make_images(40),
        "y_train": np.arange(40) % 10,
        "x_test": make_images(10, seed=1),
        "y_test": np.arange(10) % 10,
    } | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def labels_of(examples):
    return np.array([examples[i]["label"] for i in range(len(examples))])


# load_data


def test_unknown_name_lists_choices():
    with pytest.raises(UserError, match=r"data\.name=mnits.*digits.*tfds:<name>"):
        load_data("mnits")


@pytest.mark.parametrize("val_fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_val_fraction_out_of_range_is_named(val_fraction):
    with pytest.raises(UserError, match=r"data\.val_fraction=.*\[0, 1\)"):
        load_data("synthetic", val_fraction=val_fraction)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tfds:mnist"])
def test_missing_path_is_named(name, tmp_path):
    with pytest.raises(UserError, match=r"data\.path=.*nowhere: no such file"):
        load_data(name, path=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits", {"path": "."}),
        ("digits", {"num_train": 10}),
        ("cifar10", {"image_size": 32}),
        ("synthetic", {"path": "."}),
    ],
)
def test_option_of_another_data_set_is_refused(name, options):
    with pytest.raises(UserError, match=rf"data\.{next(iter(options))}=.*{name}"):
        load_data(name, **options)


def test_mistyped_key_lists_those_of_the_data_set():
    with pytest.raises(UserError, match=r"data\.img_size=8.*did you mean 'image_size'"):
        load_data("digits", img_size=8)


def test_type_of_a_loaders_key_is_checked():
    with pytest.raises(UserError, match=r"data\.image_size=8\.5: must be int"):
        load_data("digits", image_size=8.5)


@pytest.mark.parametrize("key", ["image_size", "num_train", "num_test", "num_classes"])
def test_size_below_one_is_refused(key):
    with pytest.raises(UserError, match=rf"data\.{key}=0: must be at least 1"):
        load_data("synthetic", **{key: 0})


def test_zero_val_fraction_holds_out_nothing():
    data = load_data("synthetic", num_train=20, val_fraction=0)
    assert data.val is None
    assert len(data.train) == 20


def test_val_fraction_that_leaves_an_empty_split_is_refused():
    with pytest.raises(UserError, match=r"data\.val_fraction=0\.01.*20 and 0"):
        load_data("synthetic", num_train=20, val_fraction=0.01)


def labelled_data(*counts):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    train = labelled(make_images(len(labels)), labels)
    names = tuple(f"class {i}" for i in range(len(counts)))
    return Data("own", train, None, train, names, (32, 32, 3))


@pytest.mark.parametrize("seed", range(10))
def test_a_class_keeps_an_image_for_training(seed):
    whole = labelled_data(8, 1, 1, 1, 1, 1, 1)
    data = hold_out(whole, 0.5, seed)
    assert set(data.train.labels) == set(range(7))
    assert len(data.train) + len(data.val) == 14
    images = {
        image.tobytes() for part in (data.train, data.val) for image in part.images
    }
    assert len(images) == 14
    _, held = stratified_split(whole.train.labels, 0.5, seed)
    kept = sorted(set(whole.train.labels[held]) - set(data.val.labels))
    assert kept  # or this shows nothing
    assert len(data.val) == len(held)
    (note,) = data.notes
    assert note.startswith("kept an image for training, though data.val_fraction would")
    assert note.endswith(", ".join(f"class {i}" for i in kept[:5]))


def test_a_class_of_one_image_is_no_validation_split():
    data = hold_out(labelled_data(2, 2, 2, 1, 1), 0.1, 0)
    assert len(data.val) == 1
    assert set(data.train.labels) == set(range(5))
    with pytest.raises(UserError, match=r"splits the 3 training examples into 3 and 0"):
        hold_out(labelled_data(1, 1, 1), 0.5, 0)


def test_a_class_that_keeps_an_image_anyway_is_split_as_ever():
    whole = labelled_data(8, 4, 4)
    data = hold_out(whole, 0.25, 3)
    train, val = stratified_split(whole.train.labels, 0.25, 3)
    np.testing.assert_array_equal(data.train.images, whole.train.images[train])
    np.testing.assert_array_equal(data.val.images, whole.train.images[val])
    assert data.notes == ()


def test_classes_without_training_images_are_named():
    (note,) = thin(labelled_data(4, 4, 4, 1), 2).notes
    assert note.startswith(
        "data.max_train_examples=2 leaves no training image of class"
    )


def test_validation_and_train_partition_the_training_split(tmp_path):
    images = make_images(40)
    path = str(write_npz(tmp_path / "c.npz", x_train=images))
    data = load_data("cifar10", path=path, val_fraction=0.25)
    parts = np.concatenate([data.train.images, data.val.images])
    assert sorted(image.tobytes() for image in parts) == sorted(
        image.tobytes() for image in images
    )


def test_images_keep_their_labels_through_the_split(tmp_path):
    images, labels = make_images(40), np.arange(40) * 7 % 10
    path = str(write_npz(tmp_path / "c.npz", x_train=images, y_train=labels))
    label_of = {
        image.tobytes(): label for image, label in zip(images, labels, strict=True)
    }
    data = load_data("cifar10", path=path, val_fraction=0.25)
    for part in (data.train, data.val):
        for i in range(len(part)):
            assert part[i]["label"] == label_of[part[i]["image"].tobytes()]


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5])
def test_each_class_is_held_out_to_within_one_of_its_share(fraction):
    counts = np.array([100, 37, 3, 60, 11])
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), counts))
    _, held = stratified_split(labels, fraction, seed=3)
    shares = np.bincount(labels[held], minlength=5)
    assert len(held) == round(fraction * counts.sum())
    assert np.all(np.abs(shares - len(held) * counts / counts.sum()) < 1)


def test_same_split_seed_gives_the_same_split():
    one, two = (load_data("synthetic", num_train=200, split_seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.val.images, two.val.images)
    np.testing.assert_array_equal(one.train.images, two.train.images)


def test_another_split_seed_gives_another_split():
    one, two = (load_data("synthetic", num_train=200, split_seed=s) for s in (3, 4))
    assert not np.array_equal(one.val.images, two.val.images)


def test_training_examples_are_thinned_by_class_beside_validation():
    """What is held out stays: results on it may be compared."""
    whole, part = (
        load_data("synthetic", num_train=400, val_fraction=0.1, max_train_examples=n)
        for n in (None, 100)
    )
    assert np.bincount(part.train.labels).tolist() == [10] * 10
    np.testing.assert_array_equal(part.val.images, whole.val.images)
    kept = {image.tobytes() for image in part.train.images}
    assert len(kept) == 100
    assert kept < {image.tobytes() for image in whole.train.images}


@pytest.mark.parametrize("val_fraction", [0.0, 0.25])
def test_evaluation_examples_are_thinned_by_class(val_fraction):
    whole, part, more = (
        load_data(
            "synthetic",
            num_train=400,
            num_test=200,
            val_fraction=val_fraction,
            max_eval_examples=n,
        )
        for n in (None, 50, 150)
    )
    np.testing.assert_array_equal(part.train.images, whole.train.images)
    assert np.bincount(part.test.labels).tolist() == [5] * 10
    kept = {image.tobytes() for image in part.test.images}
    assert kept < {image.tobytes() for image in whole.test.images}
    if val_fraction:
        assert np.bincount(part.val.labels).tolist() == [5] * 10
        assert [len(more.val), len(more.test)] == [100, 150]  # no more than there are
    else:
        assert part.val is None
    with pytest.raises(UserError, match=r"data\.max_eval_examples=0: must be at"):
        load_data("synthetic", max_eval_examples=0)


def test_fewer_training_examples_than_the_most_are_all_kept():
    data = load_data("synthetic", num_train=40, val_fraction=0.1, max_train_examples=36)
    assert len(data.train) == 36
    with pytest.raises(UserError, match=r"data\.max_train_examples=0: must be at"):
        load_data("synthetic", max_train_examples=0)


# Sources


def test_subset_reads_the_chosen_examples():
    whole = labelled(make_images(5), np.arange(5, dtype=np.int32))
    subset = Subset(whole, np.array([4, 2]))
    assert len(subset) == 2
    assert [subset[0]["label"], subset[1]["label"]] == [4, 2]
    np.testing.assert_array_equal(subset[1]["image"], whole.images[2])


def test_subset_has_the_labels_of_its_examples():
    whole = labelled(make_images(5), np.arange(5, dtype=np.int32))
    subset = Subset(whole, np.array([4, 2]))
    np.testing.assert_array_equal(read_labels(subset), [4, 2])


class LazySource:
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"image": np.zeros((2, 2, 3), np.uint8), "label": index % 2}


def test_lazy_source_is_split_by_class_into_subsets():
    lazy = LazySource()
    data = Data("lazy", lazy, None, lazy, ("a", "b"), (2, 2, 3))
    data = hold_out(data, 0.2, 0)
    assert isinstance(data.val, Subset)
    np.testing.assert_array_equal(np.bincount(labels_of(data.val)), [2, 2])
    assert not set(data.val.indices) & set(data.train.indices)


def test_targets_of_any_shape_go_with_their_images():
    maps = np.arange(20, dtype=np.uint8).reshape(5, 2, 2)
    whole = ArraySource(
        make_images(5), {"map": maps, "id": np.arange(5), "x": np.ones(5, np.float32)}
    )
    example = take(whole, np.array([4, 2]))[1]
    np.testing.assert_array_equal(example["map"], maps[2])
    assert example["id"] == 2
    assert example["x"].dtype == np.float32
    np.testing.assert_array_equal(example["image"], whole.images[2])


@pytest.mark.parametrize("lazy", [False, True])
def test_examples_without_labels_are_split_at_random(lazy):
    whole = ArraySource(make_images(20), {"id": np.arange(20)})
    train = Subset(whole, np.arange(20)) if lazy else whole
    data = hold_out(Data("ids", train, None, whole, (), (32, 32, 3)), 0.25, 3)
    kept, held = (
        [part[i]["id"] for i in range(len(part))] for part in (data.train, data.val)
    )
    order = np.random.default_rng(3).permutation(20)
    # Of the shuffled examples every fourth.
    assert held == sorted(order[3::4])
    assert sorted(kept + held) == list(range(20))
    with pytest.raises(UserError, match="no label"):
        read_labels(train)


def test_targets_must_be_as_many_as_the_images():
    with pytest.raises(
        UserError, match=r"map: uint8 \[4, 2, 2\], must be \[5, \.\.\.\]"
    ):
        ArraySource(make_images(5), {"map": np.zeros((4, 2, 2), np.uint8)})


@pytest.mark.parametrize("key", ["image", "error"])
def test_targets_may_not_take_the_examples_own_keys(key):
    with pytest.raises(UserError, match="targets="):
        ArraySource(make_images(5), {key: np.zeros(5, np.int32)})


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), np.zeros(2, np.int32), "images: float32"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int32), r"images: uint8 \[2"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64), "labels: int64"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int32), r"labels.*\[3\]"),
    ],
)
def test_array_source_refuses_other_arrays(images, labels, message):
    with pytest.raises(UserError, match=message):
        labelled(images, labels)


# Generated and bundled data


def test_digits_split_is_80_20_by_class():
    data = load_data("digits", val_fraction=0, image_size=8)
    assert (len(data.train), len(data.test)) == (1438, 359)
    train, test = np.bincount(data.train.labels), np.bincount(data.test.labels)
    assert np.all(np.abs(test - 0.2 * (train + test)) < 1)


def test_digits_images_are_grey_rgb_over_the_whole_range():
    data = load_data("digits", val_fraction=0, image_size=8)
    images = data.train.images
    assert images.shape[1:] == data.image_shape == (8, 8, 3)
    assert (images.min(), images.max()) == (0, 255)
    np.testing.assert_array_equal(images[..., 0], images[..., 2])


def test_digits_are_resized_to_32_by_default():
    assert load_data("digits").train[0]["image"].shape == (32, 32, 3)


def test_synthetic_classes_are_told_apart_by_their_mean_image():
    data = load_data("synthetic", num_train=200, num_test=50, val_fraction=0)
    means = np.stack(
        [data.train.images[data.train.labels == k].mean(0) for k in range(10)]
    )
    distance = ((data.test.images[:, None] - means) ** 2.0).sum((2, 3, 4))
    np.testing.assert_array_equal(distance.argmin(1), data.test.labels)


def test_synthetic_has_the_sizes_asked_for():
    data = load_data(
        "synthetic",
        val_fraction=0,
        image_size=9,
        num_train=12,
        num_test=5,
        num_classes=3,
    )
    assert (len(data.train), len(data.test), data.num_classes) == (12, 5, 3)
    assert data.train.images.shape == (12, 9, 9, 3)


# CIFAR files


@pytest.mark.parametrize("form", ["folder", "parent", "tar"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_every_form(name, form, tmp_path):
    folder = write_folder(tmp_path, name)
    path = {"folder": folder, "parent": tmp_path, "tar": write_tar(folder)}[form]
    data = load_data(name, path=str(path), val_fraction=0)
    num_files = len(LAYOUTS[name].train_files)
    expected = np.concatenate([make_images(20, seed) for seed in range(num_files)])
    np.testing.assert_array_equal(data.train.images, expected)
    np.testing.assert_array_equal(data.test.images, make_images(20, seed=num_files))
    np.testing.assert_array_equal(
        data.test.labels, np.arange(20) % LAYOUTS[name].num_classes
    )


def test_class_names_come_from_the_meta_file(tmp_path):
    data = load_data("cifar10", path=str(write_folder(tmp_path)))
    assert data.class_names[3] == "name 3"


def test_cifar10_has_its_class_names_without_a_meta_file(tmp_path):
    data = load_data("cifar10", path=str(write_folder(tmp_path, with_names=False)))
    assert data.class_names[3] == "cat"


def test_archive_is_not_unpacked(tmp_path):
    path = write_tar(write_folder(tmp_path / "made"))
    before = sorted(tmp_path.rglob("*"))
    load_data("cifar10", path=str(path))
    assert sorted(tmp_path.rglob("*")) == before


def test_truncated_archive_is_named(tmp_path):
    path = write_tar(write_folder(tmp_path))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"cifar\.tar\.gz: not a complete tar archive"):
        load_data("cifar10", path=str(path))


def test_archive_with_a_wrong_checksum_is_named(tmp_path):
    path = write_tar(write_folder(tmp_path))
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # the stored CRC-32
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"cifar\.tar\.gz.*CRC"):
        load_data("cifar10", path=str(path))


def test_file_that_is_no_archive_is_named(tmp_path):
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(gzip.compress(b"hello"))
    with pytest.raises(UserError, match=r"cifar\.tar\.gz: not a complete tar archive"):
        load_data("cifar10", path=str(path))


def test_folder_that_holds_the_archive_is_read(tmp_path):
    folder = write_folder(tmp_path / "unpacked")
    write_tar(folder).rename(tmp_path / "cifar-10-python.tar.gz")
    data = load_data("cifar10", path=str(tmp_path), val_fraction=0)
    assert len(data.train) == 100


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cifar.zip", b"PK\3\4", "a ZIP archive; unpack it and give the folder"),
        ("x.npy", b"\x93NUMPY", "one array; give an npz with x_train, y_train"),
        ("data_batch_1", b"\x80\2", "one file of the data set; give its folder"),
        ("batches.meta", b"(dp1", "one file of the data set; give its folder"),
        ("a.bin", b"\6...", "of another version of the data set; give the Python"),
        ("cifar-100-python.tar.gz", b"", "data.name=cifar100, not cifar10"),
    ],
)
def test_what_is_taken_for_the_data_set_is_named(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"\Adata\.path=\S+: is {message}"):
        load_data("cifar10", path=str(path))


def test_pipe_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "cifar.tar.gz")
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        load_data("cifar10", path=str(tmp_path / "cifar.tar.gz"))


def test_missing_batch_is_named(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "data_batch_3").unlink()
    with pytest.raises(UserError, match="holds no data_batch_3"):
        load_data("cifar10", path=str(folder))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"labels": [0]}, "no entry 'data'"),
        ({"data": np.zeros((1, 3072), np.uint8)}, "no entry 'labels'"),
        ({"data": np.zeros((1, 3072)), "labels": [0]}, "data is float64"),
        ({"data": np.zeros((1, 100), np.uint8), "labels": [0]}, r"\[1, 100\]"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, r"labels are.*\[1\]"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, r"\[10, 10\]"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}, r"\[-1, -1\]"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": ["a"]}, "labels are"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [[0], []]}, "integers"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "labels|no examples"),
        ([1, 2], "holds a list"),
    ],
)
def test_wrong_batch_is_named(batch, message, tmp_path):
    folder = write_folder(tmp_path)
    (folder / "data_batch_2").write_bytes(pickle.dumps(batch))
    with pytest.raises(UserError, match=rf"data_batch_2: .*{message}"):
        load_data("cifar10", path=str(folder))


def test_wrong_class_names_are_named(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat"]}))
    with pytest.raises(UserError, match=r"batches\.meta: label_names must be 10"):
        load_data("cifar10", path=str(folder))


def test_npz_is_read(tmp_path):
    data = load_data("cifar10", path=str(write_npz(tmp_path / "c.npz")), val_fraction=0)
    np.testing.assert_array_equal(data.train.images, make_images(40))
    np.testing.assert_array_equal(data.test.labels, np.arange(10))
    assert data.class_names[0] == "airplane"


def test_npz_labels_may_be_a_column(tmp_path):
    path = write_npz(tmp_path / "c.npz", y_test=np.arange(10)[:, None])
    data = load_data("cifar10", path=str(path))
    np.testing.assert_array_equal(data.test.labels, np.arange(10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "has no y_test"),
        ({"x_train": np.zeros((40, 32, 32, 3))}, "x_train.*float64"),
        ({"x_train": np.zeros((40, 3, 32, 32), np.uint8)}, r"x_train.*\[40, 3, 32"),
        ({"y_train": np.arange(40)}, r"y_train.*\[0, 39\].*\[0, 9\]"),
        ({"y_test": np.zeros(9, int)}, r"y_test.*\[9\].*\[10\]"),
        ({"y_test": np.zeros(10)}, "y_test.*float64"),
        ({"y_test": np.array([None] * 10)}, "not a readable npz"),
    ],
)
def test_wrong_npz_is_named(changes, message, tmp_path):
    path = write_npz(tmp_path / "c.npz", **changes)
    with pytest.raises(UserError, match=rf"c\.npz: .*{message}"):
        load_data("cifar10", path=str(path))


def test_truncated_npz_is_named(tmp_path):
    path = write_npz(tmp_path / "c.npz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"c\.npz: not a readable npz"):
        load_data("cifar10", path=str(path))


# Pickles


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickle_of_every_protocol_is_read(protocol, order):
    array = np.array([[0, 1, 255], [7, 8, 9]], np.uint8, order=order)
    value = {
        "data": array,
        "labels": [1, np.int64(2)],
        "wide": np.array([1, -2], ">i4"),
    }
    result = read_pickle(pickle.dumps(value, protocol=protocol), "f")
    np.testing.assert_array_equal(result["data"], array)
    np.testing.assert_array_equal(result["wide"], [1, -2])
    assert result["labels"] == [1, 2]


def test_python2_pickle_is_read():
    # {'data': np.array([[1, 254]], 'u1'), 'labels': [3]}, as Python 2 writes it.
    data = (
        b"\x80\x02}q\x01(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\n"
        b"ndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01K\x02\x86cnumpy\ndtype\nU\x02u1"
        b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x02\x01\xfetbU\x06labels]K\x03au."
    )
    result = read_pickle(data, "f")
    np.testing.assert_array_equal(result["data"], np.array([[1, 254]], np.uint8))
    assert result["labels"] == [3]


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_malicious_pickle_is_refused_and_not_run(protocol, tmp_path):
    folder = write_folder(tmp_path)
    proof = tmp_path / "executed"
    payload = pickle.dumps({"data": Exploit(proof)}, protocol=protocol)
    (folder / "test_batch").write_bytes(payload)
    with pytest.raises(UserError, match=r"test_batch: .*not allowed"):
        load_data("cifar10", path=str(folder))
    assert not proof.exists()


@pytest.mark.parametrize(
    "call",
    [b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nload\n", b"cnumpy\nfromfile\n"],
)
def test_pickle_may_name_nothing_but_array_constructors(call):
    with pytest.raises(UserError, match="not allowed"):
        read_pickle(call + b"(S'1'\ntR.", "f")


def test_pickle_of_objects_in_an_array_is_refused():
    # NumPy's own constructors could be made to read raw bytes as pointers.
    payload = pickle.dumps({"data": np.array([None, 1], object)})
    with pytest.raises(UserError, match="not of numbers"):
        read_pickle(payload, "f")


def test_pickle_cut_anywhere_is_one_line_naming_it():
    payload = make_batch(make_images(1)[:, :1, :1], [0])
    for length in range(len(payload)):
        with pytest.raises(UserError, match=r"\Af: not a readable pickle \(.*\)\Z"):
            read_pickle(payload[:length], "f")


def test_damaged_pickle_raises_nothing_but_user_errors():
    payload = make_batch(make_images(1)[:, :1, :1], [0], protocol=4)
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(payload)
        damaged[rng.integers(len(payload))] = rng.integers(256)
        try:
            read_pickle(bytes(damaged), "f")
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017


# TFDS


def shade_image(index):
    return np.full((4, 6, 1), 10 * index, np.uint8)


def prepare_shades(
    tfds,
    root,
    shape=(4, 6, 1),
    splits=("train", "test"),
    label=None,
    make_image=shade_image,
    name="shades",
):
    class Shades(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = None  # set below

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=shape),
                "label": label or tfds.features.ClassLabel(names=["dark", "light"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self):
            for i in range(20):
                yield i, {"image": make_image(i), "label": int(i >= 10)}

    Shades.name = name
    Shades(data_dir=root, file_format="array_record").download_and_prepare()
    return root


@pytest.fixture(scope="module")
def tfds():
    pytest.importorskip("tensorflow")
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def shades_dir(tfds, tmp_path_factory):
    return prepare_shades(tfds, tmp_path_factory.mktemp("tfds"))


@pytest.mark.full
@pytest.mark.parametrize("inside", ["", "shades/1.0.0"])
def test_prepared_tfds_directory_is_read(inside, shades_dir):
    data = load_data("tfds:shades", path=str(shades_dir / inside), val_fraction=0)
    assert data.class_names == ("dark", "light")
    assert data.image_shape == (4, 6, 1)
    assert len(data.test) == 20
    examples = sorted(
        (data.train[i] for i in range(20)), key=lambda e: e["image"].max()
    )
    for i, example in enumerate(examples):
        assert example["image"].dtype == np.uint8
        np.testing.assert_array_equal(example["image"], shade_image(i))
        assert example["label"] == int(i >= 10)


@pytest.mark.full
def test_half_of_a_tfds_data_set_is_passed_over_without_a_word(tmp_path, caplog):
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no cifar10"):
        load_data("cifar10", path=str(tmp_path))
    assert caplog.text == ""


@pytest.mark.full
def test_tfds_validation_is_held_out_by_class(shades_dir):
    data = load_data("tfds:shades", path=str(shades_dir), val_fraction=0.2)
    np.testing.assert_array_equal(np.bincount(labels_of(data.val)), [2, 2])
    assert len(data.train) == 16


@pytest.mark.full
def test_tfds_split_reads_labels_without_decoding_images(shades_dir, monkeypatch):
    def refuse(*_):
        raise AssertionError("decoded an image")

    data = load_data("tfds:shades", path=str(shades_dir), val_fraction=0)
    monkeypatch.setattr(loader._TfdsSource, "__getitem__", refuse)
    assert data.train.labels.sum() == 10


@pytest.mark.full
def test_tfds_validation_serves_as_test_without_a_test_split(tfds, tmp_path):
    prepare_shades(tfds, tmp_path, splits=("train", "validation"))
    assert len(load_data("tfds:shades", path=str(tmp_path)).test) == 20


@pytest.mark.full
def test_tfds_without_a_test_split_is_refused(tfds, tmp_path):
    prepare_shades(tfds, tmp_path, splits=("train",))
    with pytest.raises(UserError, match=r"needs the splits train and test.*has train"):
        load_data("tfds:shades", path=str(tmp_path))


def shade_of_many_sizes(index):
    return np.full((10 + index, 30 - index, 3), 10 * index, np.uint8)


@pytest.fixture(scope="module")
def photos_dir(tfds, tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    shape = (None, None, 3)
    return prepare_shades(tfds, root, shape, make_image=shade_of_many_sizes)


@pytest.mark.full
def test_tfds_images_of_many_sizes_are_cropped_to_one(photos_dir):
    data = load_data("tfds:shades", path=str(photos_dir), image_size=8, val_fraction=0)
    assert data.image_shape == (8, 8, 3)
    rng = np.random.default_rng(0)
    for examples in (
        [data.train.draw(i, rng) for i in range(20)],
        [data.train[i] for i in range(20)],
        [data.test[i] for i in range(20)],
    ):
        shades = {int(e["image"].max()) // 10: e for e in examples}
        assert sorted(shades) == list(range(20))
        for shade, example in shades.items():
            np.testing.assert_array_equal(
                example["image"], np.full((8, 8, 3), 10 * shade, np.uint8)
            )
            assert example["label"] == int(shade >= 10)


@pytest.mark.full
def test_tfds_images_of_many_sizes_are_split_by_class(photos_dir):
    data = load_data(
        "tfds:shades", path=str(photos_dir), image_size=8, val_fraction=0.2
    )
    assert isinstance(data.train, DrawingSource)
    assert not isinstance(data.val, DrawingSource)
    np.testing.assert_array_equal(np.bincount(read_labels(data.val)), [2, 2])
    np.testing.assert_array_equal(read_labels(data.val), labels_of(data.val))


@pytest.mark.full
def test_tfds_images_of_many_sizes_are_224_by_default(photos_dir):
    assert load_data("tfds:shades", path=str(photos_dir)).image_shape == (224, 224, 3)


@pytest.mark.full
def test_broken_image_of_tfds_is_named(tfds, tmp_path):
    def make_image(_):
        return io.BytesIO(b"no image")

    prepare_shades(tfds, tmp_path, (None, None, 3), make_image=make_image)
    data = load_data("tfds:shades", path=str(tmp_path), val_fraction=0)
    with pytest.raises(UserError, match=r"\Atfds:shades, train: image 7: not a read"):
        data.train[7]


@pytest.mark.full
def test_bad_image_of_tfds_is_skipped(tfds, tmp_path):
    def make_image(index):
        return io.BytesIO(b"no image") if index == 3 else shade_of_many_sizes(index)

    prepare_shades(tfds, tmp_path, (None, None, 3), make_image=make_image)
    data = load_data(
        "tfds:shades",
        path=str(tmp_path),
        val_fraction=0,
        image_size=8,
        on_bad_image="skip",
        crop_scale=(1.0, 1.0),
    )
    examples = [data.train[i] for i in range(20)]
    (bad,) = (i for i in range(20) if "error" in examples[i])
    assert examples[bad]["error"].startswith(f"tfds:shades, train: image {bad}: ")
    following = examples[(bad + 1) % 20]
    np.testing.assert_array_equal(examples[bad]["image"], following["image"])
    assert examples[bad]["label"] == following["label"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", 300),
        ("resize_px", 300),
        ("crop_scale", (0.5, 1.0)),
        ("crop_ratio", (0.5, 1.0)),
        ("on_bad_image", "skip"),
    ],
)
def test_crops_of_tfds_images_of_one_size_are_refused(key, value, shades_dir):
    message = rf"data\.{key}=.*tfds:shades, whose images are of one size"
    with pytest.raises(UserError, match=message):
        load_data("tfds:shades", path=str(shades_dir), **{key: value})


@pytest.mark.full
@pytest.mark.parametrize("name", ["imagenet2012", "tfds:imagenet2012"])
def test_imagenet_is_tested_on_its_validation_split(name, tfds, tmp_path):
    prepare_shades(
        tfds,
        tmp_path,
        shape=(None, None, 3),
        splits=("train", "validation", "test"),
        make_image=shade_of_many_sizes,
        name="imagenet2012",
    )
    path = tmp_path / "imagenet2012" / "1.0.0"
    data = load_data(name, path=str(path), val_fraction=0, image_size=8)
    assert "validation" in data.test.files.name
    assert len(data.test) == 20


@pytest.mark.full
def test_tfds_without_class_labels_is_refused(tfds, tmp_path):
    prepare_shades(tfds, tmp_path, label=tfds.features.Scalar(np.int64))
    with pytest.raises(UserError, match="'label' is Scalar, must be ClassLabel"):
        load_data("tfds:shades", path=str(tmp_path))


@pytest.mark.parametrize("dataset", ["huggingface:mnist", "some_lab:shades/large"])
def test_tfds_data_sets_that_bring_code_are_refused(dataset):
    with pytest.raises(UserError, match=r"namespace are not accepted.*runs code"):
        load_data(f"tfds:{dataset}")


@pytest.mark.full
def test_tfds_directory_of_another_data_set_is_refused(shades_dir):
    with pytest.raises(UserError, match="holds shades, not cifar10"):
        load_data("cifar10", path=str(shades_dir / "shades/1.0.0"))


def test_folder_without_the_data_set_says_what_to_give(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    message = r"holds no cifar10.*cifar-10-python\.tar\.gz.*npz.*TFDS directory"
    with pytest.raises(UserError, match=message):
        load_data("cifar10", path=str(tmp_path))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Nothing is prepared, and no server answers."""
    tfds = pytest.importorskip("tensorflow_datasets")

    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(tfds.core.utils.file_utils.constants, "DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", fail)


@pytest.mark.usefixtures("offline")
def test_no_network_says_what_to_give():
    message = r"cannot download .*no route.*; set data\.path to the official cifar"
    with pytest.raises(UserError, match=message):
        load_data("cifar10")


@pytest.mark.usefixtures("offline")
def test_silent_network_is_given_up_in_time(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: release.wait(60))
    monkeypatch.setattr(web, "ANSWER_TIMEOUT_S", 0.1)
    start = time.monotonic()
    with pytest.raises(UserError, match="no answer in 1 s"):
        load_data("cifar10")
    release.set()
    assert time.monotonic() - start < 10


def test_answer_timeout_leaves_room_within_ten_seconds():
    assert web.ANSWER_TIMEOUT_S + 1 <= 8  # and 2 s to import TFDS


@pytest.mark.parametrize(
    ("code", "reachable"), [(200, True), (403, True), (405, True), (503, False)]
)
def test_only_silence_and_server_errors_count_as_unreachable(
    code, reachable, monkeypatch
):
    def answer(request, **_):
        if code == 200:
            return io.BytesIO()
        raise urllib.error.HTTPError(request.full_url, code, "", None, io.BytesIO())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    assert (web.unreachable("http://localhost/x") is None) == reachable


# Real data


@pytest.mark.skipif("CIFAR10_DIR" not in os.environ, reason="CIFAR10_DIR is not set")
def test_official_cifar10_is_whole():
    data = load_data("cifar10", path=os.environ["CIFAR10_DIR"])
    assert (len(data.train), len(data.val), len(data.test)) == (45_000, 5_000, 10_000)
    np.testing.assert_array_equal(np.bincount(data.val.labels), [500] * 10)
    np.testing.assert_array_equal(np.bincount(data.test.labels), [1000] * 10)
    assert data.class_names == CIFAR10_CLASSES
