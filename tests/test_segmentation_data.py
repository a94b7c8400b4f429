"""Folders of images and label maps: what is found, shown and refused."""

import os
import pathlib
import shutil
import struct
import zlib

import flax.linen as nn
import jax
import numpy as np
import pytest
import smoke
from PIL import Image

from jaxattn.data.augment import IGNORED, Augment
from jaxattn.data.datasets.registry import load_data
from jaxattn.data.label_maps import LabelMapReader, resize_label_map
from jaxattn.data.labelled_images import ScaledCrops
from jaxattn.data.pipeline import StreamedLoader, TrainOrder, make_loader
from jaxattn.data.preprocess import PADDING, Canvas, make_frame
from jaxattn.errors import InterruptedRun, UserError
from jaxattn.tasks.segmentation import Segmentation
from jaxattn.training import build, loop, train_and_evaluate
from jaxattn.training.checkpoints.trained import load_trained, write_trained
from jaxattn.training.steps import augmented

CLASSES = ("ground", "sky 0 128 255", "tree")
SHAPE = (12, 16)
SPLITS = {"train": 5, "val": 2, "test": 3}


def make_label_map(seed, shape=SHAPE, classes=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, shape, np.uint8)


def colored(label_map):
    """An image whose red tells the class, so that it can be compared."""
    return np.repeat((60 * label_map.astype(np.uint8))[..., None], 3, -1)


def write(folder, name, image, label_map, mode="L"):
    for kind, array in (("images", image), ("annotations", label_map)):
        path = folder / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(array)
        if kind == "annotations" and mode == "P":
            picture.putpalette([*range(255, -1, -1)] * 3)
        picture.save(path)


def write_folder(folder, splits=SPLITS, shape=SHAPE, mode="L"):
    for split, count in splits.items():
        for i in range(count):
            label_map = make_label_map(i, shape)
            write(folder, f"{split}/{i}", colored(label_map), label_map, mode)
    (folder / "classes.txt").write_text("# of a test\nground\nsky\n\ntree\n")
    return folder


def load(folder, **keys):
    return load_data("segmentation_folder", path=str(folder), **keys)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


# What is found


def test_splits_are_those_of_the_folder(folder):
    data = load(folder)
    assert {split: len(source) for split, source in data.splits.items()} == SPLITS
    assert data.class_names == ("ground", "sky", "tree")
    assert data.class_colors is None
    assert (data.image_shape, data.is_canvas) == ((*SHAPE, 3), True)
    example = data.test[1]
    np.testing.assert_array_equal(example["label_map"], make_label_map(1))
    np.testing.assert_array_equal(example["image"], colored(make_label_map(1)))
    assert set(data.files) == {
        f"{s}/{k}" for s in SPLITS for k in ("images", "annotations")
    }


def test_without_a_test_split_validation_is_held_out(tmp_path):
    data = load(write_folder(tmp_path, {"train": 10, "val": 2}), val_fraction=0.2)
    assert {split: len(source) for split, source in data.splits.items()} == {
        "train": 8, "val": 2, "test": 2,
    }  # fmt: skip
    np.testing.assert_array_equal(data.test[1]["label_map"], make_label_map(1))


def test_a_palette_says_colours_not_classes(tmp_path):
    data = load(write_folder(tmp_path, mode="P"))
    np.testing.assert_array_equal(data.test[0]["label_map"], make_label_map(0))


def test_folders_inside_and_files_of_other_kinds(folder):
    label_map = make_label_map(7)
    write(folder, "train/more/0", colored(label_map), label_map)
    (folder / "images" / "train" / "notes.txt").write_text("no image")
    data = load(folder)
    assert len(data.train) == 6
    assert data.notes == ("images/train: left out 1 .txt",)


def test_lines_of_classes_may_have_colours(folder):
    lines = ("ground, wet 1 2 3", "sky 0, 128, 255", "tree 9 9 9")
    data = load(folder, classes=lines)
    assert data.class_names == ("ground, wet", "sky", "tree")
    assert data.class_colors == ((1, 2, 3), (0, 128, 255), (9, 9, 9))


def test_ade20k_is_known_by_its_table(tmp_path):
    splits = {"training": 3, "validation": 2}
    write_folder(tmp_path, splits)
    (tmp_path / "classes.txt").unlink()
    rows = [
        "Idx\tRatio\tTrain\tVal\tName",
        "1\t.2\t1\t1\twall",
        "2\t.1\t1\t1\tsky, air",
    ]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(rows))
    data = load(tmp_path, val_fraction=0.0)
    assert data.class_names == ("wall", "sky")
    # 0 is ignored, and the others are one less.
    expected = make_label_map(1).astype(int) - 1
    np.testing.assert_array_equal(data.test[1]["label_map"], expected % 256)
    with pytest.raises(UserError, match=r"class 2 in row .* must be 0 to 1 \(255 is"):
        load(tmp_path, reduce_zero_label=False)


def test_pascal_voc_is_known_by_its_folders(tmp_path):
    for i in range(4):
        label_map = make_label_map(i, classes=21)
        write(tmp_path, f"2007_{i}", colored(label_map), label_map, "P")
    (tmp_path / "images").rename(tmp_path / "JPEGImages")
    (tmp_path / "annotations").rename(tmp_path / "SegmentationClass")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_2\n2007_0\n")
    (lists / "val.txt").write_text("2007_1\n")
    data = load(tmp_path, val_fraction=0.0)
    assert (len(data.train), len(data.test), data.num_classes) == (2, 1, 21)
    expected = make_label_map(1, classes=21)
    np.testing.assert_array_equal(data.test[0]["label_map"], expected)
    (lists / "val.txt").write_text("2007_9\n")
    with pytest.raises(UserError, match=r"val\.txt names what .* hold: 2007_9"):
        load(tmp_path)


# What evaluation shows


def test_small_images_are_padded_and_large_ones_scaled_down():
    canvas = Canvas((12, 20, 3))
    assert canvas.fit(6, 9) == (6, 9)
    assert canvas.fit(48, 40) == (12, 10)
    image = np.full((6, 9, 3), 7, np.uint8)
    shown, classes = canvas.show(image), canvas.show_label_map(image[..., 0])
    for array, rest in ((shown, PADDING), (classes, IGNORED)):
        assert array.shape[:2] == (12, 20)
        assert (array[:6, :9] == 7).all()
        assert (array[6:] == rest).all()
        assert (array[:, 9:] == rest).all()


def test_a_large_image_and_its_label_map_stay_together(tmp_path):
    """A checkerboard of squares of 4 pixels at half its size."""
    squares = np.indices((32, 40)) // 4
    label_map = (squares.sum(0) % 2).astype(np.uint8)
    for split in ("train", "val"):
        write(tmp_path, f"{split}/0", colored(label_map), label_map)
    (tmp_path / "classes.txt").write_text("a\nb")
    data = load(tmp_path, canvas_size=(16, 24), val_fraction=0.0)
    example = data.test[0]
    expected = label_map[::2, ::2]
    np.testing.assert_array_equal(example["label_map"][:, :20], expected)
    assert (example["label_map"][:, 20:] == IGNORED).all()
    # Antialiasing reaches over edges, but not over the middle.
    red = example["image"][:, :20, 0].astype(int)
    np.testing.assert_array_equal(red > 30, expected == 1)
    frame = make_frame(data.image_shape, None, is_canvas=data.is_canvas)
    read = frame.read(tmp_path / "images" / "val" / "0.png")
    np.testing.assert_array_equal(read, example["image"])


@pytest.mark.parametrize("size", [(6, 9), (48, 40), (31, 7)])
def test_what_is_said_of_the_canvas_is_brought_back(size):
    canvas = Canvas((12, 20, 3))
    label_map = np.zeros(size, np.uint8)
    label_map[size[0] // 2 :] = 1
    on_canvas = canvas.show_label_map(label_map)
    restored = canvas.restore_label_map(on_canvas, *size)
    assert restored.shape == size
    assert (restored == label_map).mean() > 0.9
    assert canvas.fit(*size) != size or (restored == label_map).all()
    h, w = canvas.fit(*size)
    boxes = np.array([[0, 0, w, h], [-1, h / 2, w + 3, 12]], np.float32)
    expected = [[0, 0, size[1], size[0]], [0, size[0] / 2, size[1], size[0]]]
    np.testing.assert_allclose(canvas.restore_boxes(boxes, *size), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [(24, 32), (6, 8)])
def test_the_nearest_pixel_is_pillows(size):
    label_map = make_label_map(0, classes=200)
    by_pillow = Image.fromarray(label_map).resize(size[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resize_label_map(label_map, *size), by_pillow)


# What training shows


def drawn(folder, index=0, seed=0, **keys):
    data = load(folder, val_fraction=0.0, **keys)
    return data.train.draw(index, np.random.default_rng(seed))


def test_image_and_label_map_are_scaled_and_cropped_alike(tmp_path):
    label_map = np.zeros((40, 60), np.uint8)
    label_map[10:25, 20:45] = 2
    for split in ("train", "val"):
        write(tmp_path, f"{split}/0", colored(label_map), label_map)
    (tmp_path / "classes.txt").write_text("a\nb\nc")
    for seed in range(8):
        example = drawn(tmp_path, seed=seed, canvas_size=(40, 60), crop_size=(24, 50))
        classes, red = example["label_map"], example["image"][..., 0].astype(int)
        assert classes.shape == (24, 50)
        is_clear = (classes != IGNORED) & (np.abs(red - 60) > 40)
        np.testing.assert_array_equal(red[is_clear] > 60, classes[is_clear] == 2)
        assert is_clear.sum() > 0.8 * (classes != IGNORED).sum()
        assert (example["image"][classes == IGNORED] == PADDING).all()


def test_scales_are_of_what_evaluation_shows(tmp_path):
    write_folder(tmp_path, {"train": 1, "val": 1}, shape=(48, 64))
    keys = {"canvas_size": (24, 32), "crop_size": (60, 80)}
    areas = [
        (drawn(tmp_path, seed=seed, **keys)["label_map"] != IGNORED).sum()
        for seed in range(60)
    ]
    factors = np.sqrt(np.array(areas) / (24 * 32))
    assert 0.45 < factors.min() < 0.65
    assert 1.85 < factors.max() < 2.05


def test_crops_of_one_class_are_tried_again():
    """One column in twenty has another class; a third of all crops reach it."""
    label_map = np.zeros((20, 60), np.uint8)
    label_map[:, 30:] = 1
    label_map[0] = IGNORED  # does not count

    def share_of_varied(cat_max_ratio):
        crops = ScaledCrops((20, 20), (1, 1), cat_max_ratio)
        rng = np.random.default_rng(0)
        shares = []
        for _ in range(200):
            classes = crops.draw(rng, label_map, label_map.shape).take(label_map)
            ones = (classes == 1).sum() / (classes != IGNORED).sum()
            shares.append(0.25 < ones < 0.75)
        return np.mean(shares)

    # 9 of 41 places; all ten tries fail once in twelve.
    assert 0.1 < share_of_varied(1.0) < 0.35
    assert share_of_varied(0.75) > 0.85


def test_a_feed_is_a_function_of_seed_and_step(folder):
    """So a resumed run goes on exactly, in as many processes as it likes."""
    loader = make_loader(load(folder).train)
    assert isinstance(loader, StreamedLoader)
    order = TrainOrder(5, 2, seed=3)
    whole = list(loader.train_feeds(order, 0, 5))
    later = list(loader.train_feeds(order, 3, 5))
    for feed, again in zip(whole[3:], later, strict=True):
        jax.tree.map(np.testing.assert_array_equal, feed, again)
    assert whole[0]["label_map"].dtype == np.uint8
    assert whole[0]["label_map"].shape == (2, *SHAPE)
    assert (whole[0]["label_map"] != whole[3]["label_map"]).any()


def test_what_is_not_drawn_lives_on_the_device(folder):
    data = load(folder, scale_range=(1.0, 1.0))
    loader = make_loader(data.train)
    store = loader.store
    assert store["image"].shape == (5, *SHAPE, 3)
    np.testing.assert_array_equal(store["label_map"][4], make_label_map(4))
    with pytest.raises(
        UserError, match=r"'resident': .*data\.scale_range=\(1\.0, 1\.0"
    ):
        make_loader(load(folder).train, loader="resident")


# In a run


def test_a_step_moves_label_maps_with_their_images():
    label_maps = np.stack([make_label_map(i) for i in range(6)])
    batch = {"image": colored(label_maps) + np.uint8(9), "label_map": label_maps}
    augment = Augment(flip_probability=0.5, crop_padding_px=2, rotation_degrees=40.0)

    @jax.jit
    def move(batch):
        return augmented(
            augment, lambda x: x, Segmentation(), jax.random.key(1), batch, None
        )

    (images, targets, _), _ = jax.device_get(move(batch))
    expected = np.where(images[..., 0] == 0, IGNORED, (images[..., 0] - 9) // 60)
    np.testing.assert_array_equal(targets["label_map"], expected)
    assert 0.05 < (expected == IGNORED).mean() < 0.5
    assert (expected[expected != IGNORED] != label_maps[expected != IGNORED]).any()


class Pixelwise(nn.Module):
    """Logits of three classes by the colour of a pixel."""

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        return nn.Dense(3)(x)


def make_run(folder, **data):
    section = {"name": "segmentation_folder", "path": str(folder), **data}
    lines = ("ground 1 2 3", "sky 0 128 255", "tree 9 9 9")
    config = {
        "seed": 0,
        "num_epochs": 2,
        "batch_size": 2,
        "data": {**section, "classes": lines},
        "augment": {"flip_probability": 0.5, "photometric_probability": 0.5},
        "normalize": {"mean": (0.5,), "std": (0.25,)},
        "schedule": {"name": "constant", "learning_rate": 0.1},
        "optimizer": {"name": "sgd"},
        "log": {"tensorboard": False},
    }
    own = {"model": Pixelwise(), "task": Segmentation()}
    return build(config, **own, devices=smoke.one_device())


def load_own(workdir, **kwargs):
    return load_trained(workdir, model=Pixelwise(), task=Segmentation(), **kwargs)


def test_a_network_is_shown_images_as_its_run_was(folder, tmp_path):
    run = make_run(folder, canvas_size=(14, 18))
    x = np.zeros((1, 14, 18, 3))
    variables = jax.jit(run.model.init)(jax.random.key(0), x)
    write_trained(tmp_path / "run", run.record, variables)
    trained = load_own(tmp_path / "run")
    assert trained.preprocess.frame == run.preprocess.frame == Canvas((14, 18, 3))
    assert trained.class_colors == ((1, 2, 3), (0, 128, 255), (9, 9, 9))


@pytest.mark.full
def test_a_stopped_run_goes_on_exactly(folder, tmp_path, monkeypatch):
    """With random scales and crops of the host, and draws of the device."""

    def train(name, stops_at):
        monkeypatch.setattr(loop, "Interrupt", lambda: smoke.InterruptedAt(stops_at))
        train_and_evaluate(make_run(folder, crop_size=(10, 14)), tmp_path / name)
        return load_own(tmp_path / name, weights="last").variables

    expected = train("whole", 10**6)
    with pytest.raises(InterruptedRun, match=r"at step [1-5] of 6"):
        train("cut", 2)
    jax.tree.map(np.testing.assert_array_equal, train("cut", 10**6), expected)


# What is refused, in one line


def spoil(folder, name, array):
    Image.fromarray(array).save(folder / f"{name}.png")


def add_small(folder):
    small = make_label_map(0, (5, 6))
    write(folder, "val/9", colored(small), small)


FILE_FAULTS = {
    "size": (
        lambda f: spoil(f, "annotations/train/0", make_label_map(0, (12, 15))),
        r"train/0\.png: is of 12 x 15 pixels, its image .*0\.png of 12 x 16; must",
    ),
    "colours": (
        lambda f: spoil(f, "annotations/val/1", colored(make_label_map(0))),
        r"annotations/val/1\.png: has pixels of mode RGB, must be a label map",
    ),
    "beyond": (
        lambda f: spoil(f, "annotations/test/0", make_label_map(0) + np.uint8(1)),
        r"test/0\.png: class 3 in row \d+, column \d+, must be 0 to 2 \(255 is"
        r" ignored\); if 0 is no class, set data\.reduce_zero_label",
    ),
    "no label map": (
        lambda f: (f / "annotations/train/3.png").unlink(),
        r"images/train: without a label map of the same name in .*/train: 3\.png",
    ),
    "no image": (
        lambda f: (f / "images/train/3.png").unlink(),
        r"annotations/train: without an image of the same name in .*/train: 3\.png",
    ),
    "two images": (
        lambda f: shutil.copy(f / "images/val/1.png", f / "images/val/1.PNG"),
        r"images/val: holds 1\.PNG and 1\.png, which differ in their ending alone",
    ),
    "empty": (
        lambda f: [path.unlink() for path in (f / "images/val").iterdir()],
        r"images/val: is empty, must hold images",
    ),
    "unreadable": (
        lambda f: (f / "annotations/train/1.png").write_bytes(b"\x89PNG\r\n\x1a\n"),
        r"annotations/train/1\.png: not a readable image",
    ),
    "no train": (
        lambda f: (f / "annotations/train").rename(f / "annotations/other"),
        r"annotations holds no folder train",
    ),
    "no folder": (
        lambda f: (f / "annotations").rename(f / "labels"),
        r"holds no folder annotations; must be a folder with images/<split>/ and",
    ),
    "no classes": (
        lambda f: (f / "classes.txt").unlink(),
        r"holds no classes\.txt, which must name the classes",
    ),
    "sizes": (
        add_small,
        r"data\.canvas_size: needed, .*sizes: 12 x 16 .*, 5 x 6 \(.*9",
    ),
}
KEY_FAULTS = [
    ({"classes": ("a", "a", "b")}, r"data\.classes: names a twice"),
    ({"classes": ("a",)}, r"data\.classes: names 1 classes, must be 2 to 255"),
    ({"classes": CLASSES}, r"1 of 3 classes have a colour, must be all or none"),
    ({"classes": ("a 1 2 300", "b 1 2 3")}, r"a has the colour \(1, 2, 300\), must be"),
    ({"canvas_size": (0, 4)}, r"data\.canvas_size=\(0, 4\): must be a number or \(h"),
    ({"crop_size": (4, 4, 3)}, r"data\.crop_size=\(4, 4, 3\): must be a number or \(h"),
    ({"scale_range": (2.0, 1.0)}, r"data\.scale_range=\(2\.0, 1\.0\): must be two"),
    ({"cat_max_ratio": 0.0}, r"data\.cat_max_ratio=0\.0: must be in \(0, 1\]"),
    ({"image_size": 12}, r"data\.image_size=12: not accepted with"),
]


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_fault_of_files_is_one_line(folder, fault):
    spoil_it, message = FILE_FAULTS[fault]
    spoil_it(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("keys", "message"), KEY_FAULTS)
def test_a_fault_of_keys_is_one_line(folder, keys, message):
    with pytest.raises(UserError, match=message):
        load(folder, **keys)


def test_a_later_fault_is_told_at_first_use(folder):
    spoil(folder, "annotations/train/4", colored(make_label_map(0)))
    data = load(folder)
    with pytest.raises(UserError, match=r"train/4\.png: has pixels of mode RGB"):
        data.train.draw(4, np.random.default_rng(0))


def test_what_cannot_be_decoded_may_be_skipped(folder):
    (folder / "annotations/train/1.png").write_bytes(b"")
    train = load(folder, on_bad_image="skip").train
    assert "annotations/train/1.png" in train[1]["error"]
    np.testing.assert_array_equal(train[1]["label_map"], make_label_map(2))


def test_a_label_map_may_be_all_ignored(tmp_path):
    path = tmp_path / "map.png"
    Image.fromarray(np.full(SHAPE, IGNORED, np.uint8)).save(path)
    assert (LabelMapReader(3).read(str(path)) == IGNORED).all()


# Real data


@pytest.mark.slow
def test_camvid_is_read_whole():
    """`JAXATTN_CAMVID`: CamVid's 367, 101 and 233 images at 180 x 240, 11 classes."""
    if (folder := os.environ.get("JAXATTN_CAMVID")) is None:
        pytest.skip("JAXATTN_CAMVID names no folder")
    from jaxattn.recipes.upernet import get_config

    section = get_config("camvid").data.to_dict() | {"path": folder}
    data = load_data(**{k: v for k, v in section.items() if v is not None})
    assert [len(source) for source in data.splits.values()] == [367, 101, 233]
    assert data.image_shape == (180, 240, 3)
    counts = np.zeros(256, np.int64)
    for source in data.splits.values():
        for i in range(len(source)):
            counts += np.bincount(source[i]["label_map"].ravel(), minlength=256)
    assert (counts[:11] > 0).all()
    assert counts[11:IGNORED].sum() == 0
    assert pathlib.Path(folder).is_dir()


def png_of_grey(values, bits):
    """A PNG of one channel with so many bits a pixel, which Pillow does not write."""
    H, W = values.shape
    per_byte = 8 // bits
    rows = b""
    for row in values:
        padded = [*row, *[0] * (-W % per_byte)]
        packed = [
            sum(int(v) << (8 - bits * (i + 1)) for i, v in enumerate(part))
            for part in np.reshape(padded, (-1, per_byte))
        ]
        rows += b"\0" + bytes(packed)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", W, H, bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    parts = (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_that_is_spread_over_a_byte_is_refused(tmp_path, bits):
    """Class 1 of 4 bits would be read as 17, class 3 of 2 bits as 255, ignored."""
    path = tmp_path / "a.png"
    path.write_bytes(png_of_grey(np.array([[0, 1, 1, 0, 1]]), bits))
    with pytest.raises(UserError, match=rf"has pixels of mode L;{bits}, must be a lab"):
        LabelMapReader(200).read(str(path))


def test_a_mask_of_one_bit_has_two_classes(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_of_grey(np.array([[0, 1, 1, 0, 1]]), 1))
    assert LabelMapReader(2).read(str(path)).tolist() == [[0, 1, 1, 0, 1]]


def test_one_number_of_a_command_line_is_both_sides(tmp_path):
    data = load(write_folder(tmp_path), canvas_size=(24,))
    assert data.image_shape == (24, 24, 3)
