"""Weights that come with the package."""

import json
import os

import chex
import numpy as np
import pytest
import smoke

from jaxattn import UserError, weights
from jaxattn.cli import main
from jaxattn.data.source import ArraySource
from jaxattn.inference.evaluate import load_data_of
from jaxattn.inference.methods import Plain
from jaxattn.inference.predict import Predictor
from jaxattn.training.run import build
from jaxattn.training.trained import load_trained


@pytest.fixture
def packaged(trained_workdir, tmp_path, monkeypatch):
    """The weights of a run, packaged as `small`; returns the run."""
    trained = load_trained(trained_workdir)
    weights.write_weights(
        tmp_path, "small", trained.config, trained.variables, trained.step
    )
    monkeypatch.setattr(weights.importlib.resources, "files", lambda _: tmp_path)
    return trained


def test_packaged_weights_are_the_runs_own(packaged):
    assert weights.list_weights() == ("small",)
    loaded = load_trained(weights="small")
    chex.assert_trees_all_equal(loaded.variables, packaged.variables)
    assert loaded.model == packaged.model
    assert loaded.class_names == packaged.class_names
    assert loaded.image_shape == packaged.image_shape
    assert loaded.step == packaged.step
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    source = ArraySource(images, np.zeros(5, np.int32))
    ours, theirs = (
        Predictor(t, devices=smoke.one_device()).predict(source, Plain())
        for t in (loaded, packaged)
    )
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)


def test_the_place_of_the_data_is_not_packaged(packaged, tmp_path):
    packaged.config["data"]["path"] = "/home/someone/images"
    weights.write_weights(tmp_path, "other", packaged.config, packaged.variables, 1)
    config, _ = weights.read_weights("other")
    assert config["data"]["path"] is None
    assert "someone" not in (tmp_path / "other.json").read_text()


@pytest.mark.usefixtures("packaged")
def test_commands_take_packaged_weights_without_a_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    predict = ["predict", "--data", "images.npz", "--out", "out.csv"]
    assert main([*predict, "--weights", "small"]) == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + len(images)
    assert main(["evaluate", "--weights", "small"]) == 0
    assert list(tmp_path.glob("small/evaluation/*/report.txt"))


def test_a_run_may_begin_with_packaged_weights(packaged):
    config = smoke.get_config()
    config.data.image_size = 16
    config.init_from = "small"
    begun = build(config, smoke.one_device()).init_state().variables
    chex.assert_trees_all_equal(begun, packaged.variables)


@pytest.mark.usefixtures("packaged")
def test_weights_and_a_workdir_exclude_each_other(trained_workdir):
    with pytest.raises(UserError, match="must be left out: small is no run's"):
        load_trained(trained_workdir, weights="small")
    with pytest.raises(UserError, match="must be given, or weights one of small"):
        load_trained()
    with pytest.raises(UserError, match="did you mean 'small'"):
        load_trained(weights="smal")


@pytest.mark.parametrize("name", weights.list_weights())
def test_package_holds_small_files_with_a_card(name):
    folder = weights.importlib.resources.files(weights)
    assert len((folder / f"{name}.npz").read_bytes()) < 2e6
    assert json.loads((folder / f"{name}.json").read_text())["data"]["path"] is None
    card = (folder / f"{name}.md").read_text()
    assert f"--weights {name} " in card
    for heading in ("## Data", "## Recipe", "## Accuracy", "## Limits"):
        assert heading in card


def record():
    path = smoke.ROOT / "benchmarks/results/runs/canet_tiny_20_epochs_seed42.json"
    return json.loads(path.read_text())


def test_card_gives_the_accuracy_of_the_record():
    card = (smoke.ROOT / "jaxattn/weights/canet_tiny-cifar10.md").read_text()
    assert f"**{record()['test_accuracy']:.2%}**".replace("%", " %") in card


@pytest.mark.slow
@pytest.mark.skipif("CIFAR10_DIR" not in os.environ, reason="CIFAR10_DIR is not set")
def test_packaged_weights_have_the_accuracy_of_the_record():
    trained = load_trained(weights="canet_tiny-cifar10")
    data = load_data_of(trained, {"path": os.environ["CIFAR10_DIR"]})
    predictor = Predictor(trained, devices=smoke.one_device())
    labels = predictor.predict(data.test, Plain()).labels
    accuracy = np.mean(labels == data.test.labels)
    assert accuracy == pytest.approx(record()["test_accuracy"], abs=1e-3)
