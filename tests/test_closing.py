"""What a run says at its end: its figures, and what to do next."""

import dataclasses
import os
import pathlib
import re
import shlex
import shutil
from typing import ClassVar

import flax.linen as nn
import numpy as np
import pytest
import smoke

from jaxattn.cli import _make_parser
from jaxattn.training import loop
from jaxattn.training.records.closing import next_commands
from jaxattn.training.records.phases import Phases
from jaxattn.training.run import build


@pytest.fixture(scope="module")
def run():
    return build(smoke.get_config(), devices=smoke.one_device())


def with_data(run, **section):
    """The run, its config's section `data` another one."""
    return dataclasses.replace(run, config={**run.config, "data": section})


def commands(run, workdir):
    """The arguments of each `jaxattn` command, as a shell splits them."""
    first, *lines = next_commands(run, workdir)
    assert first == "next:"
    return [
        shlex.split(line)[1:] for line in lines if " jaxattn " in f" {line.strip()}"
    ]


def test_every_command_parses(run, tmp_path):
    parsed = [_make_parser().parse_args(words) for words in commands(run, tmp_path)]
    assert [args.run.__name__ for args in parsed] == [
        "_evaluate",
        "_predict",
        "_attention_maps",
    ]
    assert {args.workdir for args in parsed} == {str(tmp_path)}


@pytest.mark.parametrize("name", ["plain", "a b", "it's", "$HOME;ls", "-x", "é\n"])
def test_names_of_workdirs_are_quoted(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for words in commands(run, tmp_path / name):
        place = words[words.index("--workdir") + 1]
        assert not os.path.isabs(place)  # as short as it can be typed
        assert not place.startswith("-")
        assert pathlib.Path(place).resolve() == tmp_path / name


def test_a_workdir_elsewhere_is_named_in_full(run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert commands(run, tmp_path / "w")[0] == [
        "evaluate",
        "--workdir",
        f"{tmp_path}/w",
    ]


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("val/cat/1.png", "val"),
        ("cifar-10-batches-py/test_batch", "cifar-10-batches-py/test_batch"),
        ("test_batch", "test_batch"),
        ("other", None),
    ],
)
def test_predict_is_given_images_that_are_there(run, tmp_path, inside, expected):
    (tmp_path / inside).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / inside).touch()
    run = with_data(run, name="any", path=str(tmp_path))
    words = commands(run, tmp_path)[1]
    wanted = str(tmp_path / expected) if expected else "YOUR_IMAGE.jpg"
    assert words[words.index("--data") + 1] == wanted


class Own(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):  # noqa: ARG002
        return nn.Dense(2)(x.mean((1, 2)))


def test_commands_that_need_names_are_left_out_of_runs_of_objects(tmp_path):
    arrays = np.zeros((16, 8, 8, 1), np.uint8), np.arange(16) % 2
    config = smoke.get_config()
    config.normalize.update(mean=(0.5,), std=(0.5,))
    devices = smoke.one_device()
    own_data = build(config, data={"train": arrays}, devices=devices)
    assert next_commands(own_data, tmp_path) == []  # one channel: no files of images
    own_model = build(config, {"train": arrays}, Own(), devices=devices)
    assert next_commands(own_model, tmp_path) == []


class Recorder(Phases):
    told: ClassVar[list] = []

    def phase(self, text, after_s=0.0):
        self.told.append(text)
        return super().phase(text, after_s)


def test_a_finished_run_that_is_repeated_tells_its_test(
    two_epochs, tmp_path, capsys, monkeypatch
):
    workdir = shutil.copytree(two_epochs, tmp_path / "run")
    config = smoke.get_config()
    config.num_epochs = 2
    monkeypatch.setattr(loop, "Phases", Recorder)
    monkeypatch.setattr(Recorder, "told", [])
    monkeypatch.chdir(tmp_path)
    loop.train_and_evaluate(config, workdir, devices=smoke.one_device())
    err = capsys.readouterr().err
    assert re.search(
        r"test accuracy .*\nnext:\n  jaxattn evaluate --workdir run\n", err
    )
    # No TensorBoard in this run.
    assert "tensorboard" not in err
    tested = [text for text in Recorder.told if text.startswith("testing")]
    assert tested[0] == "testing the last weights 0/45, compiling"
    assert "testing the best weights 0/45" in tested
    assert Recorder.told[0] == "reading the config"
    assert Recorder.told[-1] == "drawing the figures"


@pytest.mark.full
def test_a_run_tells_what_it_does_before_its_first_step(tmp_path, monkeypatch):
    config = smoke.get_config()
    config.num_epochs = 1
    monkeypatch.setattr(loop, "Phases", Recorder)
    monkeypatch.setattr(Recorder, "told", [])
    loop.train_and_evaluate(config, tmp_path, devices=smoke.one_device())
    texts = [text.split(",")[0] for text in Recorder.told]
    assert texts[:4] == [
        "reading the config",
        "making the weights",
        "compiling the training step: seconds to minutes",
        "validating 0/30",
    ]


def test_reading_tells_what_and_how_many():
    told = []
    build(smoke.get_config(), devices=smoke.one_device(), tell=told.append)
    assert told[:4] == [
        "reading the data set synthetic",
        "reading 90 train images",
        "reading 30 val images",
        "reading 45 test images",
    ]
