"""What a network sees of an image is the same whichever way the image comes in."""

import functools
import json
import math

import jax
import numpy as np
import pytest
import smoke
from PIL import Image

from jaxattn import create_model
from jaxattn.data.preprocess import Frame, Preprocess
from jaxattn.errors import UserError
from jaxattn.inference.attention import read_examples
from jaxattn.inference.evaluation import load_data_of
from jaxattn.inference.inputs import read_inputs
from jaxattn.inference.predict import Predictor
from jaxattn.tasks.classification import Plain
from jaxattn.training import build
from jaxattn.training.checkpoints.trained import load_trained, write_trained

MODEL = {"name": "efficient_resnet", "base_width": 2}
SIZES = ((40, 40), (31, 60), (60, 31))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of several sizes, whose borders evaluation cuts off."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("framed", "plain"):
            (folder / split / name).mkdir(parents=True)
            for i, (height, width) in enumerate(SIZES):
                pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
                if name == "framed":
                    pixels[:2] = pixels[-2:] = pixels[:, :2] = pixels[:, -2:] = 255
                path = folder / split / name / f"{i}.png"
                Image.fromarray(pixels).save(path)
    return folder


@functools.cache
def untrained():
    init = jax.jit(create_model(num_classes=2, **MODEL).init)
    return init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))


def make_trained(photos, workdir, says_resize=True):
    """An untrained network of a run on the photos, saved and loaded."""
    variables = untrained()
    dataset = {"class_names": ["framed", "plain"], "image_shape": [16, 16, 3]}
    section = {"name": "imagefolder", "path": str(photos), "image_size": 16}
    config = {
        "model": MODEL,
        "data": {**section, "resize_px": 24, "val_fraction": 0.0},
        "normalize": {"mean": [0.5], "std": [0.25]},
        "dataset": {**dataset, "resize_px": 24} if says_resize else dataset,
    }
    write_trained(workdir, config, variables)
    return load_trained(workdir)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    return make_trained(photos, tmp_path_factory.mktemp("run") / "w")


def files(photos):
    return sorted((photos / "val").rglob("*.png"))


def test_predict_sees_what_evaluate_sees(trained, photos):
    evaluated = load_data_of(trained, {}).test
    predicted = read_inputs([photos / "val"], trained.preprocess.frame).source
    assert len(evaluated) == len(predicted) == 6
    for i in range(6):
        np.testing.assert_array_equal(evaluated[i]["image"], predicted[i]["image"])


def test_predict_answers_as_evaluate_does(trained, photos):
    predictor = Predictor(trained, batch_size=4, devices=smoke.one_device())
    evaluated = predictor.predict(load_data_of(trained, {}).test, Plain())
    source = read_inputs([photos / "val"], trained.preprocess.frame).source
    predicted = predictor.predict(source, Plain())
    np.testing.assert_array_equal(evaluated.probabilities, predicted.probabilities)


def test_attention_maps_see_what_evaluate_sees(trained, photos):
    shown = read_examples(trained, files(photos), 6)
    evaluated = load_data_of(trained, {}).test
    for i in range(6):
        np.testing.assert_array_equal(shown.images[i], evaluated[i]["image"])


def test_a_photo_as_an_array_is_seen_as_its_file(trained, photos):
    frame = trained.preprocess.frame
    for path in files(photos):
        shown = frame.show(np.asarray(Image.open(path)))
        np.testing.assert_array_equal(shown, frame.read(path))


def test_a_workdir_of_version_0_1_0_sees_the_same(photos, tmp_path):
    """It does not say the size before the crop; its section `data` does."""
    trained = make_trained(photos, tmp_path / "w", says_resize=False)
    assert trained.preprocess.frame == Frame((16, 16, 3), 24)


@pytest.mark.parametrize(
    ("section", "resize_px"),
    [
        ({"name": "imagefolder", "image_size": 32}, 37),  # 8/7 of it
        ({"name": "imagenet2012"}, 37),
        ({"name": "tfds:flowers", "image_size": 32, "resize_px": 40}, 40),
        ({"name": "tfds:flowers", "crop_scale": [0.5, 1.0]}, 37),
        ({"name": "tfds:mnist"}, None),
        ({"name": "cifar10", "path": "x"}, None),
        ({}, None),  # imported weights
    ],
)
def test_old_sections_say_what_was_seen(section, resize_px, tmp_path):
    variables = untrained()
    config = {
        "model": MODEL,
        "data": section,
        "normalize": {"mean": [0.5], "std": [0.5]},
        "dataset": {"class_names": ["a", "b"], "image_shape": [32, 32, 3]},
    }
    write_trained(tmp_path / "w", config, variables)
    frame = load_trained(tmp_path / "w").preprocess.frame
    assert frame == Frame((32, 32, 3), resize_px)


@pytest.mark.full
def test_an_exported_file_says_how_images_are_seen(trained, tmp_path):
    from jaxattn.inference.export import export_model

    export_model(trained, tmp_path / "m.bin", weights="best", platforms=("cpu",))
    assert json.loads((tmp_path / "m.json").read_text())["resize_px"] == 24


def test_image_wider_than_high_is_read_into_a_rectangle(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 50, 3), np.uint8)
    frame = Frame((8, 12, 3))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = frame.read(tmp_path / "a.png")
    assert read.shape == (8, 12, 3)
    np.testing.assert_array_equal(read, frame.show(pixels))
    # Lying on its side, as its EXIF data say.
    exif = Image.Exif()
    exif[274] = 6
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(pixels)))
    turned.save(tmp_path / "b.png", exif=exif)
    assert frame.read(tmp_path / "b.png").shape == (8, 12, 3)
    assert np.abs(frame.read(tmp_path / "b.png").astype(int) - read).max() <= 1


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.0,), (0.5, 0.0), r"std=\(0\.5, 0\.0\): must be above 0 and at most 1\Z"),
        ((0.0,), (0.5, -0.1), r"std=\(0\.5, -0\.1\): must be above 0"),
        ((0.0,), (math.nan,), r"std=\(nan,\): must be numbers"),
        ((0.0,), (math.inf,), r"std=\(inf,\): must be numbers"),
        ((0.0,), (), r"std=\(\): must be one number, or 2"),
        ((), (0.5,), r"mean=\(\): must be one number, or 2"),
        ((0.5,) * 3, (0.5,), r"mean=\(0\.5, 0\.5, 0\.5\): must be one number, or 2"),
        ((-0.1,), (0.5,), r"mean=\(-0\.1,\): must be at least 0"),
        ("ab", (0.5,), r"mean='ab': must be numbers"),
        (0.5, (0.5,), r"mean=0\.5: must be numbers"),
        (
            (123.675, 116.28),
            (0.5,),
            r"mean=\(123\.675, 116\.28\): .*divide by 255, \(0\.485, 0\.456\)\Z",
        ),
        ((0.5,), (58.395,), r"std=\(58\.395,\): .*divide by 255, \(0\.229,\)\Z"),
        ((0.5,), (300.0,), r"std=\(300\.0,\): .* pixels are divided by 255\Z"),
    ],
)
def test_statistics_out_of_range_are_refused(mean, std, message):
    with pytest.raises(UserError, match=rf"\Anormalize\.{message}"):
        Preprocess(frame=Frame((4, 4, 2)), mean=mean, std=std)


@pytest.mark.parametrize("values", [(0.5,), [0.5, 1], np.array([0.1, 0.2])])
def test_statistics_within_range_are_taken(values):
    Preprocess(frame=Frame((4, 4, 2)), mean=values, std=values)
    Preprocess(frame=Frame((4, 4, 2)), mean=(0.0,), std=(1.0,))


def test_statistics_are_refused_before_the_data_are_read():
    config = {
        **{"seed": 0, "num_epochs": 1, "batch_size": 8},
        "model": {"name": "canet_tiny"},
        "data": {"name": "imagefolder", "path": "/nowhere"},
        "normalize": {"mean": (123.675, 116.28, 103.53), "std": (0.2,)},
        "schedule": {"name": "constant", "learning_rate": 0.1},
        "optimizer": {"name": "sgd"},
    }
    with pytest.raises(UserError, match=r"normalize\.mean.*divide by 255"):
        build(config)
