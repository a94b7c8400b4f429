import math
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxattn import UserError
from jaxattn.data import images, load_data, read_labels
from jaxattn.data.crops import CroppedImages, Crops, RandomlyCroppedImages
from jaxattn.data.datasets.folder import FolderFiles, read_folder
from jaxattn.data.source import DrawingSource

BILINEAR = Image.Resampling.BILINEAR


def make_image(height=40, width=50, seed=0):
    """Smooth noise: what differs by less than a pixel differs little."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or make_image()).save(path, **options)
    return path


def write_folder(root, classes=("cat", "ant", "bee"), per_class=4):
    for split in ("train", "val"):
        for label, name in enumerate(classes):
            for i in range(per_class):
                image = make_image(30 + 7 * i, 50 - 5 * i, seed=10 * label + i)
                write(root / split / name / f"{i}.png", image)
    return root


def load(path, **options):
    options = {"image_size": 16, "val_fraction": 0} | options
    return load_data("imagefolder", path=str(path), **options)


def source_of(path, kind=RandomlyCroppedImages, **options):
    files = FolderFiles((str(path),), np.zeros(1, np.int32))
    return kind(files, Crops(**options))


def difference(one, two):
    return np.abs(np.asarray(one).astype(int) - np.asarray(two).astype(int))


# Crops


def torchvision_params(rng, height, width, scale, ratio):
    """`RandomResizedCrop.get_params` of torchvision: top, left, height, width."""
    area = height * width
    for _ in range(10):
        target_area = area * rng.uniform(scale[0], scale[1])
        aspect_ratio = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            i = int(rng.integers(0, height - h + 1))
            j = int(rng.integers(0, width - w + 1))
            return i, j, h, w
    in_ratio = float(width) / float(height)
    if in_ratio < min(ratio):
        w = width
        h = round(w / min(ratio))
    elif in_ratio > max(ratio):
        h = height
        w = round(h * max(ratio))
    else:
        w = width
        h = height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (9, 7), (2, 300), (300, 2)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.3, 0.4)])
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.5, 0.9)])
def test_random_crop_is_that_of_torchvision(shape, scale, ratio):
    crops = Crops(scale=scale, ratio=ratio)
    for seed in range(50):
        left, top, right, bottom = crops.draw(np.random.default_rng(seed), *shape)
        rng = np.random.default_rng(seed)
        expected = torchvision_params(rng, *shape, scale, ratio)
        assert (top, left, bottom - top, right - left) == expected


def test_random_crop_of_a_line_of_pixels_has_pixels():
    crops = Crops(ratio=(3.0, 3.0))
    assert crops.draw(np.random.default_rng(0), 1000, 1) == (0, 499, 1, 500)


def distance_to_uniform(values, low, high):
    """The Kolmogorov-Smirnov statistic."""
    values = np.sort((np.asarray(values) - low) / (high - low))
    steps = np.arange(len(values) + 1) / len(values)
    return max(np.abs(values - steps[1:]).max(), np.abs(values - steps[:-1]).max())


def test_random_crops_are_uniform_in_area_ratio_and_place():
    # No attempt fails: the largest side is sqrt(0.5 * 4/3) of the image's.
    crops, rng, n = Crops(scale=(0.1, 0.5)), np.random.default_rng(0), 4000
    left, top, right, bottom = np.array(
        [crops.draw(rng, 1000, 1000) for _ in range(n)]
    ).T
    width, height = right - left, bottom - top
    largest = 1.63 / math.sqrt(n)  # of the statistic, at 1 %
    assert distance_to_uniform(width * height / 1e6, 0.1, 0.5) < largest
    log_ratio = np.log(width / height)
    assert distance_to_uniform(log_ratio, math.log(3 / 4), math.log(4 / 3)) < largest
    assert distance_to_uniform(left / (1000 - width), 0, 1) < largest
    assert distance_to_uniform(top / (1000 - height), 0, 1) < largest


@pytest.mark.parametrize(("size", "resized"), [(224, 256), (16, 18), (160, 183)])
def test_images_are_scaled_by_eight_sevenths_of_the_size(size, resized):
    assert Crops(image_size=size).frame.resize_px == resized


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"resize_px": 15},
            r"data\.resize_px=15: must be at least data\.image_size=16",
        ),
        ({"crop_scale": (0.5,)}, r"data\.crop_scale=\(0\.5,\): must be two numbers"),
        ({"crop_scale": (0.0, 1.0)}, r"data\.crop_scale.*above 0 and at most 1"),
        ({"crop_scale": (0.5, 1.1)}, r"data\.crop_scale.*at most 1"),
        ({"crop_scale": (0.9, 0.5)}, r"data\.crop_scale.*the smallest first"),
        (
            {"crop_scale": ("a", "b")},
            r"data\.crop_scale=\('a', 'b'\): must be of float",
        ),
        ({"crop_scale": 0.5}, r"data\.crop_scale=0\.5: must be a tuple"),
        ({"crop_ratio": (-1.0, 1.0)}, r"data\.crop_ratio.*above 0"),
        ({"crop_ratio": (1.0, math.inf)}, r"data\.crop_ratio.*finite"),
        ({"image_size": 0}, r"data\.image_size=0: must be from 1 to 10,000"),
        (
            {"on_bad_image": "ignore"},
            r"data\.on_bad_image='ignore': choices: error, skip\Z",
        ),
    ],
)
def test_value_out_of_range_is_named(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load(tmp_path, **options)


# Pixels


@pytest.mark.parametrize("seed", range(5))
def test_training_image_is_the_scaled_crop(seed, tmp_path):
    image = make_image(80, 100)
    source = source_of(write(tmp_path / "a.png", image), image_size=16)
    box = source.crops.draw(np.random.default_rng(seed), 80, 100)
    drawn = source.draw(0, np.random.default_rng(seed))["image"]
    np.testing.assert_array_equal(drawn, image.resize((16, 16), BILINEAR, box))
    # Cut first, as torchvision does, only what is near the edge differs.
    expected = image.crop(box).resize((16, 16), BILINEAR)
    assert difference(drawn, expected)[2:-2, 2:-2].max() <= 1


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (333, 333), (60, 97)])
@pytest.mark.parametrize("options", [{}, {"resize_px": 64}, {"resize_px": 90}])
def test_evaluation_image_is_resize_and_center_crop(shape, options, tmp_path):
    image = make_image(*shape)
    source = source_of(
        write(tmp_path / "a.png", image), CroppedImages, image_size=64, **options
    )
    resized = options.get("resize_px", 73)
    H, W = shape
    height, width = (
        (resized, int(resized * W / H)) if H <= W else (int(resized * H / W), resized)
    )
    top, left = round((height - 64) / 2), round((width - 64) / 2)
    whole = image.resize((width, height), BILINEAR)
    expected = whole.crop((left, top, left + 64, top + 64))
    result = source[0]["image"]
    assert result.dtype == np.uint8
    # Pillow rounds twice and holds edges as float32: ties go the other way.
    assert difference(result, expected).max() <= 2
    assert difference(result, expected).mean() < 0.2


@pytest.fixture
def decoded_sizes(monkeypatch):
    """The sizes, width first, of the images that crops are scaled from."""
    sizes = []
    resize = Image.Image.resize

    def spy(image, *args):
        image.load()
        sizes.append(image.size)
        return resize(image, *args)

    monkeypatch.setattr(Image.Image, "resize", spy)
    return sizes


@pytest.mark.parametrize(
    ("size", "divisor"), [(301, 1), (300, 2), (150, 4), (75, 8), (20, 8)]
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("form", ["JPEG", "MPO"])
def test_large_jpeg_is_decoded_smaller_but_no_smaller_than_shown(
    size, divisor, orientation, form, decoded_sizes, tmp_path
):
    exif = Image.Exif()
    exif[274] = orientation
    more = {"append_images": [make_image()]} if form == "MPO" else {}
    path = write(
        tmp_path / "a.jpg",
        make_image(601, 803),
        format=form,
        quality=95,
        exif=exif,
        save_all=form == "MPO",
        **more,
    )
    decoded_sizes.clear()
    shape = (803, 601) if orientation == 6 else (601, 803)

    def whole(height, width):
        assert (height, width) == shape
        return 0, 0, width, height

    exact = images.read_crop(str(path), whole, size)
    fast = images.read_crop(str(path), whole, size, reduce=True)
    reduced = (-(-803 // divisor), -(-601 // divisor))
    assert decoded_sizes == [(803, 601), reduced]
    assert difference(fast, exact).mean() < 1
    assert difference(fast, exact).max() <= 12


def test_evaluation_decodes_in_full(decoded_sizes, tmp_path):
    path = write(tmp_path / "a.jpg", make_image(600, 800))
    decoded_sizes.clear()
    source = source_of(path, image_size=16)
    source[0], source.draw(0, np.random.default_rng(0))
    assert decoded_sizes[0] == (800, 600)
    assert decoded_sizes[1] < (800, 600)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_crops_are_of_the_upright_image(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    path = write(tmp_path / f"a.{suffix}", make_image(40, 56), exif=exif)
    upright = Image.fromarray(images.read_image(path))
    box = (3, 5, 29, 35)
    expected = upright.resize((16, 16), BILINEAR, box)
    result = images.read_crop(path, lambda *_: box, 16)
    # Turned before or after, the two passes of the filter round differently.
    assert difference(result, expected).max() <= 1


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        ("png", "L"),
        ("png", "RGBA"),
        ("png", "P"),
        ("png", "I;16"),
        ("jpg", "L"),
        ("jpg", "CMYK"),
    ],
)
def test_other_kinds_of_pixels_become_rgb(suffix, mode, tmp_path):
    image = make_image()
    if mode == "I;16":
        image = image.convert("L")
    path = write(tmp_path / f"a.{suffix}", image.convert(mode))
    source = source_of(path, image_size=16)
    whole = Image.fromarray(images.read_image(path))
    box = source.crops.draw(np.random.default_rng(3), 40, 50)
    np.testing.assert_array_equal(
        source.draw(0, np.random.default_rng(3))["image"],
        whole.resize((16, 16), BILINEAR, box),
    )
    assert source[0]["image"].shape == (16, 16, 3)


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_first_frame_of_an_animation_is_cropped(suffix, tmp_path):
    frames = [Image.new("RGB", (50, 40), colour) for colour in ("lime", "red", "blue")]
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    write(path, frames[0], save_all=True, append_images=frames[1:], **options)
    source = source_of(path, image_size=16)
    expected = np.full((16, 16, 3), (0, 255, 0))
    for example in source[0], source.draw(0, np.random.default_rng(0)):
        np.testing.assert_array_equal(example["image"], expected)


# Images that cannot be decoded


KINDS = ["truncated", "empty", "text", "gigantic"]


def damage(path, kind="truncated"):
    """Damages a PNG file, and returns its path."""
    content = path.read_bytes()
    header = content[12:16] + struct.pack(">II", 60000, 60000) + content[24:29]
    checksum = struct.pack(">I", zlib.crc32(header))
    damaged = {
        "truncated": content[: len(content) * 3 // 4],
        "empty": b"",
        "text": b"no image\n",
        "gigantic": content[:12] + header + checksum + content[33:],
    }
    path.write_bytes(damaged[kind])
    return path


def rng():
    return np.random.default_rng(5)


def assert_same(example, expected):
    np.testing.assert_array_equal(example["image"], expected["image"])
    assert example["label"] == expected["label"]


@pytest.mark.parametrize("options", [{}, {"on_bad_image": "error"}])
@pytest.mark.parametrize("kind", KINDS)
def test_bad_image_is_an_error_that_names_it(kind, options, tmp_path):
    path = damage(write_folder(tmp_path) / "train" / "bee" / "1.png", kind)
    source = load(tmp_path, **options).train
    for read in (lambda: source[5], lambda: source.draw(5, rng())):
        with pytest.raises(
            UserError, match=r"not a readable image \(.+\)\Z"
        ) as excinfo:
            read()
        assert str(excinfo.value).startswith(f"{path}: ")
        assert "\n" not in str(excinfo.value)


@pytest.mark.parametrize("kind", KINDS)
def test_next_image_stands_in_for_a_skipped_one(kind, tmp_path):
    whole = load(write_folder(tmp_path)).train
    expected, expected_drawn = whole[8], whole.draw(8, rng())
    paths = [tmp_path / "train" / "bee" / f"{i}.png" for i in (2, 3)]
    for path in paths:
        damage(path, kind)
    source = load(tmp_path, on_bad_image="skip").train
    np.testing.assert_array_equal(read_labels(source), read_labels(whole))
    for index, path in zip((6, 7), paths, strict=True):
        assert_same(source[index], expected)
        drawn = source.draw(index, rng())
        assert_same(drawn, expected_drawn)
        assert drawn["error"].startswith(f"{path}: not a readable image (")
    assert "error" not in source[5]
    assert_same(source.draw(5, rng()), whole.draw(5, rng()))


def test_bad_images_are_tried_once(tmp_path, monkeypatch):
    folder = write_folder(tmp_path, per_class=8)
    for path in sorted((folder / "train").rglob("*.png"))[:20]:
        damage(path, "empty")
    source = load(folder, on_bad_image="skip").train
    opened = []
    decode = images.decode

    def spy(file, *args):
        opened.append(file)
        return decode(file, *args)

    monkeypatch.setattr(images, "decode", spy)
    for index in range(20):
        source[index]
    assert len(set(opened)) == 21
    assert len(opened) == 20 + 20  # each bad one once, and a good one for each


def test_stand_ins_come_from_the_same_part_of_the_split(tmp_path):
    write_folder(tmp_path)
    good = load(tmp_path, val_fraction=0.5)
    train, val = good.train.indices, good.val.indices
    files = sorted((tmp_path / "train").rglob("*.png"))
    for part in (train, val):
        damage(files[part[-1]])
    data = load(tmp_path, val_fraction=0.5, on_bad_image="skip")
    assert isinstance(data.train, DrawingSource)
    assert not isinstance(data.val, DrawingSource)
    np.testing.assert_array_equal(read_labels(data.train), read_labels(good.train))
    assert_same(data.train.draw(5, rng()), good.train.draw(0, rng()))
    assert_same(data.val[5], good.val[0])


@pytest.mark.parametrize("crop_scale", [(0.08, 1.0), (1.0, 1.0)])
def test_split_without_a_good_image_is_an_error(crop_scale, tmp_path):
    write_folder(tmp_path)
    for path in (tmp_path / "val").rglob("*.png"):
        damage(path)
    data = load(tmp_path, on_bad_image="skip", crop_scale=crop_scale)
    data.train[0]
    message = r"on_bad_image='skip': none of the 12 images .*cat/0\.png: not a readable"
    with pytest.raises(UserError, match=message):
        data.test[8]


def test_file_that_cannot_be_opened_is_not_skipped(tmp_path):
    path = write_folder(tmp_path) / "train" / "ant" / "2.png"
    source = load(tmp_path, on_bad_image="skip").train
    path.unlink()
    with pytest.raises(UserError, match=r"ant/2\.png: .*\(No such file or directory\)"):
        source.draw(2, rng())


# Folders


def test_classes_are_the_sorted_folders(tmp_path):
    data = load(write_folder(tmp_path, ("b", "a", "B", "10", "9")))
    assert data.class_names == ("10", "9", "B", "a", "b")
    assert data.image_shape == (16, 16, 3)
    np.testing.assert_array_equal(read_labels(data.train), np.repeat(np.arange(5), 4))
    assert [data.test[i]["label"] for i in (0, 4, 19)] == [0, 1, 4]


def test_val_is_the_test_split(tmp_path):
    write_folder(tmp_path)
    write(tmp_path / "val" / "ant" / "more.png")
    data = load(tmp_path)
    assert (len(data.train), len(data.test), data.val) == (12, 13, None)


def test_files_are_found_at_any_depth_and_hidden_ones_skipped(tmp_path):
    write_folder(tmp_path, per_class=1)
    ant = tmp_path / "train" / "ant"
    deep = write(ant / "x" / "y" / "deep.PNG")
    write(ant / ".hidden.png")
    write(ant / ".hidden" / "a.png")
    write(tmp_path / "train" / ".cache" / "a.png")
    write(tmp_path / "train" / "beside.png")
    (ant / "notes.txt").touch()
    folder = read_folder(tmp_path)
    assert folder.class_names == ("ant", "bee", "cat")
    assert folder.train.paths[:2] == (str(ant / "0.png"), str(deep))
    np.testing.assert_array_equal(folder.train.labels, [0, 0, 1, 2])


def test_class_folders_may_be_links(tmp_path):
    write_folder(tmp_path / "real")
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for name in ("ant", "bee"):
            (tmp_path / split / name).symlink_to(tmp_path / "real" / split / name)
    assert len(load(tmp_path).train) == 8


def remove(folder):
    for file in folder.rglob("*.png"):
        file.unlink()
    for inner in sorted(folder.rglob("*"), reverse=True):
        inner.rmdir()
    folder.rmdir()


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_split_is_named(split, tmp_path):
    remove(write_folder(tmp_path) / split)
    with pytest.raises(UserError, match=rf"data\.path=.*: holds no folder {split}; "):
        load(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_without_classes_is_named(split, tmp_path):
    remove(write_folder(tmp_path) / split)
    write(tmp_path / split / "a.png")
    with pytest.raises(UserError, match=rf"data\.path=.*: {split} holds no folder; "):
        load(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_empty_class_is_named(split, tmp_path):
    bee = write_folder(tmp_path) / split / "bee"
    remove(bee)
    bee.mkdir()
    with pytest.raises(UserError, match=rf"{split}.bee: holds no image.*\.jpg"):
        load(tmp_path)


def test_single_class_is_refused(tmp_path):
    write_folder(tmp_path, ("ant",))
    with pytest.raises(UserError, match=r"train holds one class, ant; .* two\Z"):
        load(tmp_path)


@pytest.mark.parametrize(("lacking", "other"), [("train", "val"), ("val", "train")])
def test_classes_of_one_split_only_are_named(lacking, other, tmp_path):
    write_folder(tmp_path)
    for i in range(7):
        write(tmp_path / other / f"new{i}" / "a.png")
    message = rf"{lacking} lacks classes of {other}: new0, .*new4 and 2 more\Z"
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_missing_path_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.path=.*nowhere: no such file"):
        load(tmp_path / "nowhere")


def test_path_is_needed():
    with pytest.raises(UserError, match=r"data\.path: needed with .*imagefolder"):
        load_data("imagefolder")


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path):
    write_folder(tmp_path)
    for file in tmp_path.rglob("*.png"):
        file.write_text("no image")
    data = load(tmp_path, val_fraction=0.25)
    assert (len(data.train), len(data.val)) == (9, 3)
    np.testing.assert_array_equal(read_labels(data.val), [0, 1, 2])


# What the pipeline relies on


def test_subset_of_train_draws_and_that_of_validation_does_not(tmp_path):
    whole = load(write_folder(tmp_path)).train
    data = load(tmp_path, val_fraction=0.25)
    assert isinstance(data.train, DrawingSource)
    assert not isinstance(data.val, DrawingSource)
    assert not isinstance(data.test, DrawingSource)
    for i, index in enumerate(data.train.indices):
        drawn = data.train.draw(i, np.random.default_rng(i))
        expected = whole.draw(int(index), np.random.default_rng(i))
        np.testing.assert_array_equal(drawn["image"], expected["image"])
        assert drawn["label"] == expected["label"] == read_labels(data.train)[i]
    index = data.val.indices[0]
    np.testing.assert_array_equal(data.val[0]["image"], whole[index]["image"])


def test_smallest_share_of_one_turns_random_crops_off(tmp_path):
    data = load(write_folder(tmp_path), crop_scale=(1.0, 1.0), val_fraction=0.25)
    assert not isinstance(data.train, DrawingSource)
    assert data.train[0]["image"].shape == (16, 16, 3)


VIEWS = {
    "resize_px": 256,
    "crop_scale": (0.5, 1.0),
    "crop_ratio": (0.5, 1.0),
    "on_bad_image": "skip",
}


@pytest.mark.parametrize(("key", "value"), VIEWS.items())
@pytest.mark.parametrize("name", ["digits", "cifar10", "synthetic"])
def test_keys_of_encoded_images_are_refused_for_others(key, value, name):
    with pytest.raises(UserError, match=rf"data\.{key}=.*{name}; leave it out"):
        load_data(name, **{key: value})


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_source_goes_to_other_processes(on_bad_image, tmp_path):
    options = {"val_fraction": 0.25, "on_bad_image": on_bad_image}
    source = load(write_folder(tmp_path), **options).train
    copy = pickle.loads(pickle.dumps(source))
    one, two = (s.draw(2, np.random.default_rng(1))["image"] for s in (source, copy))
    np.testing.assert_array_equal(one, two)
