"""Files that are no images, in prediction and before a run ends by them."""

import csv

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from jaxattn import cli, doctor
from jaxattn.data import load_data
from jaxattn.data.preprocess import Frame, Preprocess
from jaxattn.errors import UserError
from jaxattn.inference import attention
from jaxattn.tasks.classification import Classification
from jaxattn.tasks.classification.predictions import align_predictions
from jaxattn.training import build
from jaxattn.training.checkpoints.trained import Trained
from jaxattn.training.loop import train_and_evaluate


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        return x.mean((1, 2))  # a logit for each colour


@pytest.fixture
def trained(monkeypatch):
    """What every command loads: a network that names the colour."""
    frame = Frame((4, 4, 3))
    network = Trained(
        model=Net(),
        task=Classification(),
        preprocess=Preprocess(frame=frame, mean=(0.5,), std=(0.5,)),
        class_names=("red", "green", "blue"),
        config={"model": {"name": "net"}, "dataset": {}},
        variables={},
        step=0,
    )
    monkeypatch.setattr("jaxattn.cli.predict.load_network", lambda _: network)
    return network


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate(("r.png", "g.png", "b.png")):
        Image.fromarray(np.full((8, 8, 3), 255 * np.eye(3)[i]).astype(np.uint8)).save(
            folder / name
        )
    return folder


def predict(photos, *arguments):
    out = photos.parent / "out.csv"
    code = cli.main(["predict", "--data", str(photos), "--out", str(out), *arguments])
    return code, list(
        csv.reader(out.read_text().splitlines())
    ) if out.exists() else None


@pytest.mark.usefixtures("trained")
def test_one_bad_image_is_an_error_by_default(photos, capsys):
    (photos / "bad.jpg").write_bytes(b"<!doctype html>")
    assert predict(photos) == (2, None)
    assert (
        "bad.jpg: not a readable image (it is an HTML page" in capsys.readouterr().err
    )


@pytest.mark.usefixtures("trained")
def test_skipped_image_is_named_and_has_no_label(photos, capsys):
    (photos / "bad.jpg").write_bytes(b"<!doctype html>")
    (photos / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    code, rows = predict(photos, "--on-bad-image", "skip", "--probabilities")
    assert code == 0
    assert {row[0]: row[1] for row in rows[1:]} == {
        **{"bad.jpg": "", "gone.jpg": ""},
        **{"r.png": "red", "g.png": "green", "b.png": "blue"},
    }
    assert rows[2][2:] == ["", "", ""]
    assert rows[1][2:] != ["", "", ""]
    error = capsys.readouterr().err
    assert "2 images could not be read: no label" in error


@pytest.mark.usefixtures("trained")
def test_no_readable_image_is_an_error(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    code, rows = predict(tmp_path / "photos", "--on-bad-image", "skip")
    assert (code, rows) == (2, None)
    assert "none of the 1 images can be read" in capsys.readouterr().err


def test_ensemble_says_that_a_label_is_missing(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("ID,Labels\na.png,\n")
    with pytest.raises(UserError, match=r"a\.csv: line 2: no label, as of an image"):
        align_predictions([tmp_path / "a.csv", tmp_path / "b.csv"])


def test_attention_maps_leave_out_what_cannot_be_read(trained, photos, caplog):
    (photos / "bad.jpg").touch()
    examples = attention.read_examples(trained, [photos], 9, "skip")
    assert examples.names == ["b.png", "g.png", "r.png"]
    assert "bad.jpg: not a readable image (the file is empty); skipped" in caplog.text
    with pytest.raises(UserError, match="the file is empty"):
        attention.read_examples(trained, [photos], 9)


# Before a run ends by them


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "folder"
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (6, 6)).save(root / split / name / f"{i}.png")
    return root


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        return nn.Dense(2)(x.mean((1, 2)))


def train(folder, workdir, **options):
    options = {"image_size": 4, "val_fraction": 0.5, **options}
    config = {
        "seed": 0,
        "num_epochs": 1,
        "batch_size": 4,
        "pipeline": {"loader": "streamed"},
        "normalize": {"mean": (0.5,), "std": (0.5,)},
        "schedule": {"name": "constant", "learning_rate": 1e-3},
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0},
        "log": {"tensorboard": False},
    }
    data = load_data("imagefolder", path=str(folder), **options)
    run = build(config, data=data, model=Linear(), devices=jax.devices()[:1])
    return train_and_evaluate(run, workdir)


@pytest.mark.parametrize("split", ["val", "test"])
def test_bad_image_of_an_evaluation_is_found_before_the_first_step(
    split, folder, tmp_path, capsys
):
    if split == "test":
        path = folder / "val" / "bee" / "3.png"
    else:
        data = load_data("imagefolder", path=str(folder), val_fraction=0.5)
        path = data.val.source.files.paths[data.val.indices[2]]
        path = tmp_path / path
    path.write_bytes(path.read_bytes()[:40])
    message = rf"1 of \d+ {split} images cannot be read: .*png"
    with pytest.raises(UserError, match=message):
        train(folder, tmp_path / "run")
    error = capsys.readouterr().err
    assert "data: 6 training, 6 validation and 12 test images of 2 classes" in error
    assert "epoch" not in error
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_bad_test_image_that_is_to_be_skipped_is_skipped(folder, tmp_path):
    (folder / "val" / "bee" / "3.png").write_bytes(b"")
    results = train(folder, tmp_path / "run", on_bad_image="skip")
    assert results["num_examples"]["test"] == 11


def test_doctor_reads_one_image_or_all(folder):
    (folder / "val" / "bee" / "3.png").write_bytes(b"")
    (folder / "train" / "ant" / "1.png").write_bytes(b"GIF89a")
    (folder / "train" / "ant" / "notes.txt").touch()
    some = list(doctor._data("imagefolder", str(folder), all_images=False))
    assert [finding.status for finding in some] == ["ok", "warning", "ok"]
    assert some[1].text.endswith("train: left out 1 .txt")
    statuses, texts = zip(
        *doctor._data("imagefolder", str(folder), all_images=True), strict=True
    )
    assert statuses == ("ok", "warning", "FAIL", "FAIL", "FAIL", "FAIL")
    assert "train/ant/1.png: not a readable image (" in texts[2]
    assert texts[3] == "train: 1 of 12 images cannot be read; mend or remove them"
    assert texts[4].endswith("val/bee/3.png: not a readable image (the file is empty)")


def test_all_images_need_a_data_set(capsys):
    assert cli.main(["doctor", "--all-images"]) == 2
    error = capsys.readouterr().err
    assert "--all-images=True: must be given with --data-name" in error
