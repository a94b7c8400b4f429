"""A run is resumed with the data that it was begun with, or told of others."""

import json
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from jaxattn import UserError
from jaxattn.config.changes import changed_data, changed_since
from jaxattn.data import load_data
from jaxattn.data.preprocess import Frame, Preprocess
from jaxattn.inference.evaluation import load_data_of
from jaxattn.tasks.classification import Classification
from jaxattn.training import build
from jaxattn.training.checkpoints.trained import Trained
from jaxattn.training.loop import train_and_evaluate


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        return nn.Dense(2)(x.mean((1, 2)))


CONFIG = {
    "seed": 0,
    "num_epochs": 1,
    "batch_size": 4,
    "normalize": {"mean": (0.5,), "std": (0.5,)},
    "schedule": {"name": "constant", "learning_rate": 1e-3},
    "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0},
    "log": {"tensorboard": False},
}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for i in range(6):
                write(root / split / name / f"{i}.png", i)
    return root


def write(path, seed):
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).save(path)


def load(folder):
    return load_data("imagefolder", path=str(folder), image_size=4, val_fraction=0.5)


def record(folder, **more):
    """What a workdir's config.json says, after the way through JSON."""
    return json.loads(json.dumps({"dataset": {"files": load(folder).files}, **more}))


def add(folder):
    write(folder / "train" / "ant" / "00.png", 9)
    return r"train/ant: 6 files of \d+ bytes -> 7 files of \d+ bytes"


def remove(folder):
    (folder / "val" / "bee" / "3.png").unlink()
    return r"val/bee: 6 files of \d+ bytes -> 5 files of \d+ bytes"


def rename(folder):
    (folder / "train" / "bee" / "3.png").rename(folder / "train" / "bee" / "a.png")
    return r"train/bee: 6 files of \d+ bytes, but others"


def overwrite(folder):
    path = folder / "train" / "ant" / "3.png"
    path.write_bytes(path.read_bytes() + b"more")
    return r"train/ant: 6 files of \d+ bytes -> 6 files of \d+ bytes"


@pytest.mark.parametrize("change", [add, remove, rename, overwrite])
def test_changed_folder_is_refused_naming_what_changed(change, folder):
    saved = record(folder)
    message = change(folder)
    with pytest.raises(UserError, match=message) as refused:
        changed_since(saved, record(folder))
    assert str(refused.value).startswith("the workdir was begun with other data (")
    assert "--config.accept_changed_data=true" in str(refused.value)
    assert "\n" not in str(refused.value)
    (line,) = changed_since(saved, record(folder, accept_changed_data=True))[1:]
    assert line.startswith(message.split(":")[0])


def test_same_folder_elsewhere_is_the_same(folder, tmp_path):
    saved = record(folder)
    folder.rename(tmp_path / "moved")
    assert changed_since(saved, record(tmp_path / "moved")) == []


def test_workdir_of_an_earlier_version_takes_any_folder(folder):
    assert changed_since({"dataset": {}}, record(folder)) == []


def test_only_the_first_of_many_changes_are_named(folder):
    saved = record(folder)
    now = {"dataset": {"files": {f"train/{i}": "1 files" for i in range(100)}}}
    with pytest.raises(UserError, match=r"; 99 more\), of which") as refused:
        changed_since(saved, now)
    assert len(str(refused.value)) < 600


def test_changed_arrays_of_a_named_data_set_are_noticed(tmp_path):
    def save(seed):
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (20, 32, 32, 3), np.uint8)
        labels = np.arange(20) % 10
        splits = {"x_train": images, "y_train": labels, "x_test": images[:5]}
        np.savez(tmp_path / "a.npz", **splits, y_test=labels[:5])
        data = load_data("cifar10", path=str(tmp_path / "a.npz"), val_fraction=0)
        return {"dataset": {"files": data.files}}

    first = save(0)
    assert changed_data(first, save(0)) == []
    assert [line[:13] for line in changed_data(first, save(1))] == [
        "test: sha256 ",
        "train: sha256",
    ]


def test_evaluation_of_changed_data_says_so(folder, tmp_path):
    trained = Trained(
        model=Net(),
        task=Classification(),
        preprocess=Preprocess(frame=Frame((4, 4, 3)), mean=(0.5,), std=(0.5,)),
        class_names=("ant", "bee"),
        config={
            "data": {"name": "imagefolder", "path": str(folder), "image_size": 4},
            **record(folder),
        },
        variables={},
        step=0,
    )
    assert load_data_of(trained, {}).notes == ()
    message = add(folder)
    (note,) = load_data_of(trained, {}).notes
    assert re.search(message, note)
    other = folder.rename(tmp_path / "other")
    assert load_data_of(trained, {"path": str(other)}).notes == ()


def test_resumed_run_refuses_a_changed_folder_unless_told(folder, tmp_path, capsys):
    def train(num_epochs, **more):
        run = build(
            CONFIG | {"num_epochs": num_epochs, **more},
            data=load(folder),
            model=Net(),
            devices=jax.devices()[:1],
        )
        train_and_evaluate(run, tmp_path / "run")

    train(1)
    train(1)  # the same data
    message = add(folder)
    with pytest.raises(UserError, match=message):
        train(1)
    train(1, accept_changed_data=True)
    assert "config changed: train/ant: 6 files" in capsys.readouterr().err
    train(1)  # they are the run's now
