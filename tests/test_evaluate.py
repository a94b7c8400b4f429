"""Evaluation during training: clean, or on augmented validation images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smoke

from jaxattn.data.augment import normalize
from jaxattn.tasks.classification.metrics import evaluation_sums, summarize
from jaxattn.training.evaluate import Evaluator
from jaxattn.training.run import build


def make_run(validation, data_parallel="jit", devices=1):
    config = smoke.get_config()
    config.data_parallel = data_parallel
    config.data.image_size = 8
    with config.unlocked():
        config.augment.validation = validation
        config.augment.brightness = 0.3  # makes the images float
    return build(config, devices=jax.devices()[:devices])


def evaluate(run, split="val", seeds=(0,)):
    evaluator = Evaluator(run, is_stopped=lambda: False)
    state = run.init_state()
    keys = map(jax.random.key, seeds)
    return [evaluator.evaluate(state.variables, split, key) for key in keys]


@pytest.fixture(scope="module")
def augmented():
    return make_run(validation=True)


def test_validation_images_are_transformed_as_drawn(augmented):
    """30 images in batches of 16, against the transforms applied by hand."""
    run, total = augmented, None
    variables = run.init_state().variables

    @jax.jit
    def sums_of(images, labels, key):
        drawn = run.augment.draw(key, 16, 8, 8).images
        own = jax.tree.map(lambda leaf: leaf[: len(labels)], drawn)
        x = normalize(run.augment.apply(images, own), **run.config["normalize"])
        logits, mask = run.model.apply(variables, x, train=False), labels >= 0
        return evaluation_sums(logits, labels, mask, label_smoothing=0.1)

    for number, start in enumerate((0, 16)):
        images, labels = (
            jnp.asarray(whole[start : start + 16])
            for whole in (run.data.val.images, run.data.val.labels)
        )
        sums = sums_of(images, labels, jax.random.fold_in(jax.random.key(0), number))
        total = sums if total is None else total + sums
    expected, actual = summarize(total), evaluate(run)[0]
    assert actual["count"] == expected["count"] == 30
    assert actual["loss"] == pytest.approx(expected["loss"], abs=1e-5)


@pytest.mark.full
@pytest.mark.parametrize(("data_parallel", "devices"), [("jit", 8), ("pmap", 2)])
def test_devices_see_the_same_augmented_images(augmented, data_parallel, devices):
    other = make_run(True, data_parallel, devices)
    (expected,), (actual,) = evaluate(augmented), evaluate(other)
    assert actual["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    np.testing.assert_array_equal(actual["confusion"], expected["confusion"])


def test_draws_follow_the_key(augmented):
    losses = [result["loss"] for result in evaluate(augmented, seeds=(0, 0, 1))]
    assert losses[0] == losses[1]
    assert abs(losses[0] - losses[2]) > 1e-6


def test_only_validation_images_are_transformed(augmented):
    clean = make_run(validation=False)
    test_losses = [evaluate(run, "test")[0]["loss"] for run in (augmented, clean)]
    assert test_losses[0] == pytest.approx(test_losses[1], abs=1e-6)
    val_losses = [evaluate(run, "val")[0]["loss"] for run in (augmented, clean)]
    assert abs(val_losses[0] - val_losses[1]) > 1e-6
