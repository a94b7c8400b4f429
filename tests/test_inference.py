"""Prediction and evaluation with the workdir of a run."""

import dataclasses
import json
import shutil
import types

import chex
import jax
import numpy as np
import pytest
import smoke
from PIL import Image

from jaxattn import UserError
from jaxattn.data.preprocess import Frame
from jaxattn.data.source import BadImageError, labelled, skip_bad_images
from jaxattn.inference.evaluation import evaluate, load_data_of
from jaxattn.inference.inputs import read_inputs
from jaxattn.inference.predict import Predictor
from jaxattn.tasks.classification import methods
from jaxattn.tasks.classification.assessment import fit_temperature
from jaxattn.tasks.classification.methods import TTA, VIEWS, Flip, Plain
from jaxattn.training.checkpoints.checkpoint import Checkpoints
from jaxattn.training.checkpoints.trained import load_trained


@pytest.fixture(scope="module")
def workdir(trained_workdir):
    return trained_workdir


@pytest.fixture(scope="module")
def trained(workdir):
    return load_trained(workdir)


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(trained, devices=smoke.one_device())


@pytest.fixture(scope="module")
def test_split(trained):
    return load_data_of(trained, {}).test


NUMBERS = tuple("0123456789")
DIGITS = {"name": "digits"}


def of_32_pixels(trained):
    return dataclasses.replace(trained.preprocess, frame=Frame((32, 32, 3)))


def direct_logits(trained, images):
    x = trained.preprocess.normalize(images)
    return trained.model.apply(trained.variables, x, train=False)


def all_logits(predictor, source, seed=0):
    return np.concatenate(list(predictor.outputs(source, VIEWS, seed=seed)), 1)


def test_plain_prediction_is_the_networks(predictor, trained, test_split):
    expected = direct_logits(trained, test_split.images)
    labels, probabilities = predictor.predict(test_split.images, Plain())
    np.testing.assert_array_equal(labels, np.argmax(expected, -1))
    np.testing.assert_allclose(probabilities, jax.nn.softmax(expected), atol=1e-5)


@pytest.mark.full
def test_views_do_not_depend_on_batches_or_devices(predictor, trained, test_split):
    reference = all_logits(predictor, test_split)
    assert reference.shape == (8, 45, 5)
    for batch_size, devices in ((7, jax.devices()[:1]), (16, jax.devices()[:4])):
        other = Predictor(trained, batch_size=batch_size, devices=devices)
        logits = all_logits(other, test_split)
        np.testing.assert_allclose(logits, reference, atol=1e-3)


def test_views_are_their_transforms(predictor, trained, test_split):
    logits = all_logits(predictor, test_split)
    images = test_split.images
    np.testing.assert_allclose(logits[0], direct_logits(trained, images), atol=1e-4)
    mirrored = direct_logits(trained, images[:, :, ::-1])
    np.testing.assert_allclose(logits[1], mirrored, atol=1e-4)
    for view in logits[2:]:
        assert np.abs(view - logits[0]).max() > 1e-5


@pytest.mark.full
def test_random_views_follow_the_seed(predictor, test_split):
    first, again, other = (
        all_logits(predictor, test_split, seed) for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(first, again)
    chex.assert_trees_all_equal(first[:2], other[:2])
    for i in range(2, 8):
        assert np.abs(first[i] - other[i]).max() > 1e-2


@pytest.mark.full
def test_nothing_is_compiled_twice(trained, test_split):
    """45 images in batches of 16, the last one padded, by all views, twice."""
    traces = 0

    def apply(variables, x, *, train):
        nonlocal traces
        traces += 1
        return trained.model.apply(variables, x, train=train)

    model = types.SimpleNamespace(apply=apply)
    counted = dataclasses.replace(trained, model=model)
    predictor = Predictor(counted, batch_size=16, devices=smoke.one_device())
    all_logits(predictor, test_split)
    all_logits(predictor, test_split, seed=1)
    assert traces == 1


def test_image_files_are_predicted_as_arrays(predictor, trained, test_split, tmp_path):
    for i, image in enumerate(test_split.images[:9]):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    inputs = read_inputs([tmp_path], trained.preprocess.frame)
    assert inputs.ids == tuple(f"{i}.png" for i in range(9))
    expected = predictor.predict(test_split.images[:9], Flip())
    decision = predictor.predict(inputs.source, Flip())
    np.testing.assert_array_equal(decision.labels, expected.labels)
    np.testing.assert_allclose(
        decision.probabilities, expected.probabilities, atol=1e-6
    )


def test_one_image_is_enough(predictor, test_split):
    decision = predictor.predict(test_split.images[:1], TTA())
    assert decision.probabilities.shape == (1, 5)


@pytest.mark.parametrize("weights", ["best", "best_ema", "last", "last_ema"])
def test_weights_are_those_of_the_checkpoint(workdir, weights):
    trained = load_trained(workdir, weights=weights)
    checkpoints = Checkpoints(workdir, read_only=True)
    suffix = "_ema" if weights.endswith("ema") else ""
    best = checkpoints.best_step(f"val_accuracy{suffix}")
    step = best if weights.startswith("best") else checkpoints.all_steps()[-1]
    assert trained.step == step
    results = json.loads((workdir / "results.json").read_text())
    expected = {
        "best": results["test_accuracy"],
        "best_ema": results["test_accuracy_ema"],
        "last": results["last_test_accuracy"],
    }
    if weights in expected:
        data = load_data_of(trained, {})
        accuracy = evaluate(Predictor(trained), data, Plain()).summary["accuracy"]
        assert accuracy == pytest.approx(expected[weights])


def test_evaluation_counts_every_example(trained):
    data = load_data_of(trained, {})
    predictor = Predictor(trained, batch_size=32)
    for split, count in (("test", 45), ("val", 30), ("train", 90)):
        evaluation = evaluate(predictor, data, Plain(), split=split)
        assert evaluation.summary["count"] == count
        assert evaluation.fitted_on == ("val" if split == "test" else split)


class Damaged:
    """A source of which two images cannot be decoded."""

    def __init__(self, source):
        self.source, self.labels = source, source.labels

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index in (2, 40):
            raise BadImageError(f"{index}.png: not a readable image")
        return self.source[index]


@pytest.mark.parametrize("method", [Plain(), TTA()])
def test_skipped_images_are_left_out(predictor, trained, test_split, method):
    damaged = skip_bad_images(Damaged(test_split))
    labels, probabilities = predictor.predict(damaged, method)
    expected = predictor.predict(test_split, method)
    known = np.delete(np.arange(45), [2, 40])
    assert np.isnan(probabilities[[2, 40]]).all()
    np.testing.assert_array_equal(labels[known], expected.labels[known])
    np.testing.assert_array_equal(probabilities[known], expected.probabilities[known])
    data = dataclasses.replace(load_data_of(trained, {}), test=damaged)
    summary = evaluate(predictor, data, method).summary
    assert summary["count"] == 43
    hits = (expected.labels == test_split.labels)[known]
    assert summary["accuracy"] == pytest.approx(hits.mean())


def test_temperature_of_overconfident_logits_is_found():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 4))
    chances = methods.softmax(logits)
    labels = (rng.random((20_000, 1)) > chances.cumsum(-1)).sum(-1)
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.05)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, abs=0.15)


def test_temperature_is_fitted_on_validation_and_applied_to_test(predictor, trained):
    data = load_data_of(trained, {})
    evaluation = evaluate(predictor, data, Plain())
    logits = direct_logits(trained, data.val.images)
    assert evaluation.temperature == pytest.approx(
        fit_temperature(np.asarray(logits), data.val.labels), rel=1e-2
    )
    before, after = evaluation.summary, evaluation.calibrated
    assert before["accuracy"] == after["accuracy"]
    assert before["loss"] != after["loss"]


def broken_workdir(workdir, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    change(copy)
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: (w / "config.json").unlink(), "holds no run"),
        (lambda w: (w / "config.json").write_text("{}"), "not a run's config"),
        (lambda w: (w / "config.json").write_text("["), "not a run's config"),
        (lambda w: shutil.rmtree(w / "checkpoints"), "holds no checkpoint yet"),
    ],
)
def test_unusable_workdir_is_one_line(workdir, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        load_trained(broken_workdir(workdir, tmp_path, change))
    assert "\n" not in str(caught.value)


def test_other_weights_name_the_choices(workdir):
    with pytest.raises(UserError, match=r"weights='bset'.*did you mean 'best'"):
        load_trained(workdir, weights="bset")


def test_average_that_was_not_kept_is_named(workdir, tmp_path):
    def change(copy):
        config = json.loads((copy / "config.json").read_text())
        config["ema"]["decay"] = 0.0
        (copy / "config.json").write_text(json.dumps(config))

    copy = broken_workdir(workdir, tmp_path, change)
    with pytest.raises(UserError, match="kept no average"):
        load_trained(copy, weights="best_ema")


def test_the_average_is_not_the_raw_weights(workdir, test_split):
    raw, average = (
        direct_logits(load_trained(workdir, weights=weights), test_split.images)
        for weights in ("last", "last_ema")
    )
    assert np.abs(raw - average).max() > 1e-2


def test_imported_weights_are_not_calibrated_on_what_they_were_trained_on(trained):
    """No validation split is cut from data that nothing is known of."""
    config = {k: v for k, v in trained.config.items() if k != "data"}
    imported = dataclasses.replace(trained, config=config, class_names=NUMBERS)
    data = load_data_of(
        dataclasses.replace(imported, preprocess=of_32_pixels(imported)), DIGITS
    )
    assert data.val is None


def test_other_classes_of_the_same_number_are_refused(trained):
    names = tuple("abcdefghij")
    other = dataclasses.replace(
        trained, class_names=names, preprocess=of_32_pixels(trained)
    )
    with pytest.raises(UserError, match="its classes are 0, 1, 2"):
        load_data_of(other, DIGITS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"name": "digits"}, "data.name=digits: classes 10, the network has 5"),
        ({"name": "cifra10"}, "unknown data set"),
    ],
)
def test_data_that_do_not_fit_are_named(trained, overrides, message):
    with pytest.raises(UserError, match=message):
        load_data_of(trained, overrides)


def test_empty_source_is_refused(predictor):
    images = np.zeros((0, 16, 16, 3), np.uint8)
    with pytest.raises(UserError, match="no images"):
        predictor.predict(labelled(images, np.zeros(0, np.int32)), Plain())
