"""Weights that come with the package."""

import json
import os
import re

import chex
import numpy as np
import pytest
import smoke

from jaxattn import UserError, weights
from jaxattn.cli import main
from jaxattn.data.source import labelled
from jaxattn.inference.predict import Predictor
from jaxattn.tasks.classification.methods import Plain
from jaxattn.training.checkpoints.trained import load_trained
from jaxattn.training.run import build


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """In place of the package's own."""
    folder = tmp_path / "packaged"
    folder.mkdir()
    monkeypatch.setattr(weights, "_folder", lambda: folder)
    return folder


@pytest.fixture
def packaged(folder, trained_workdir):
    """The weights of a run, packaged as `small`; returns the run."""
    trained = load_trained(trained_workdir)
    weights.write_weights(
        folder, "small", trained.config, trained.variables, trained.step
    )
    return trained


def test_packaged_weights_are_the_runs_own(packaged):
    assert weights.list_weights() == ("small",)
    loaded = load_trained(weights="small")
    chex.assert_trees_all_equal(loaded.variables, packaged.variables)
    assert loaded.model == packaged.model
    assert loaded.class_names == packaged.class_names
    assert loaded.image_shape == packaged.image_shape
    assert loaded.step == packaged.step
    assert loaded.config["schedule"] == packaged.config["schedule"]
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    source = labelled(images, np.zeros(5, np.int32))
    ours, theirs = (
        Predictor(t, devices=smoke.one_device()).predict(source, Plain())
        for t in (loaded, packaged)
    )
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)


def test_places_on_the_machine_are_not_packaged(folder):
    config = {
        "data": {"name": "cifar10", "path": "/home/someone/images"},
        "init_from": "/home/someone/run",
        "averaged_from": {"workdir": "/home/someone/run"},
    }
    weights.write_weights(folder, "other", config, {"params": {"w": np.ones(2)}}, 7)
    assert "someone" not in (folder / "other.json").read_text()
    config, variables, step = weights.read_weights("other")
    assert config == {"data": {"name": "cifar10", "path": None}}
    assert step == 7
    expected = {"params": {"w": np.ones(2)}, "batch_stats": {}}
    chex.assert_trees_all_equal(variables, expected)


@pytest.mark.full
@pytest.mark.usefixtures("packaged")
def test_commands_take_packaged_weights_without_a_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    predict = ["predict", "--data", "images.npz", "--out", "out.csv"]
    assert main([*predict, "--weights", "small"]) == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + len(images)
    assert main(["evaluate", "--weights", "small"]) == 0
    assert list(tmp_path.glob("evaluation/*/report.txt"))


def test_a_run_may_begin_with_packaged_weights(packaged):
    config = smoke.get_config()
    config.data.image_size = 16
    config.init_from = "small"
    begun = build(config, devices=smoke.one_device()).init_state().variables
    chex.assert_trees_all_equal(begun, packaged.variables)


@pytest.mark.usefixtures("packaged")
def test_weights_and_a_workdir_exclude_each_other(trained_workdir):
    with pytest.raises(UserError, match="must be left out: small is no run's"):
        load_trained(trained_workdir, weights="small")
    with pytest.raises(UserError, match="must be given, or weights one of small"):
        load_trained()
    with pytest.raises(UserError, match="did you mean 'small'"):
        load_trained(weights="smal")


def test_package_holds_a_small_file_with_a_card():
    (name,) = weights.list_weights()
    assert name == "canet_tiny-cifar10"
    folder = smoke.ROOT / "jaxattn" / "weights"
    assert (folder / f"{name}.npz").stat().st_size < 2e6
    card = (folder / f"{name}.md").read_text()
    assert f"--weights {name} " in card
    for heading in ("## Data", "## Recipe", "## Accuracy", "## Limits"):
        assert heading in card


def card():
    return (smoke.ROOT / "jaxattn/weights/canet_tiny-cifar10.md").read_text()


def test_card_gives_the_accuracy_of_the_record():
    path = smoke.ROOT / "benchmarks/results/runs/canet_tiny_20_epochs_seed42.json"
    record = json.loads(path.read_text())
    assert f"**{100 * record['test_accuracy']:.2f} %**" in card()
    assert f"validation {100 * record['best_val_accuracy']:.2f} %" in card()


@pytest.mark.slow
@pytest.mark.skipif("CIFAR10_DIR" not in os.environ, reason="CIFAR10_DIR is not set")
def test_card_holds_the_report_of_the_weights(capsys, tmp_path):
    """On the machine of the report to the digit, elsewhere to one image in thousand."""
    path = os.environ["CIFAR10_DIR"]
    evaluate = ["evaluate", "--weights", "canet_tiny-cifar10", "--data-path", path]
    assert main([*evaluate, "--out", str(tmp_path)]) == 0
    pattern = re.compile(r"^(?:accuracy|[a-z]+ +\d\.\d+)(?: +\d\.\d+)+", re.MULTILINE)
    found, expected = (
        [line.split() for line in pattern.findall(text)]
        for text in (capsys.readouterr().out, card())
    )
    assert len(found) == 12  # of all images, of ten classes, and their mean
    assert [line[0] for line in found] == [line[0] for line in expected]
    numbers = [[float(n) for n in line[1:]] for line in found]
    stated = [[float(n) for n in line[1:]] for line in expected]
    for ours, theirs in zip(numbers, stated, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)
