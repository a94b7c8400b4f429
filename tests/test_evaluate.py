"""Evaluation during training: clean, or on augmented validation images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smoke
from tiers import full_but

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


def evaluate(run, split="val", seed=0):
    evaluator = Evaluator(run, is_stopped=lambda: False)
    state = run.init_state()
    return evaluator.evaluate(state.variables, split, jax.random.key(seed))


@pytest.fixture(scope="module")
def augmented():
    return make_run(validation=True)


def test_validation_images_are_transformed_as_drawn(augmented):
    """30 images in batches of 16, against the transforms applied by hand."""
    run, total = augmented, None
    variables = run.init_state().variables
    network = jax.jit(functools.partial(run.model.apply, train=False))
    for number, start in enumerate((0, 16)):
        images = jnp.asarray(run.data.val.images[start : start + 16])
        labels = jnp.asarray(run.data.val.labels[start : start + 16])
        n = len(labels)
        key = jax.random.fold_in(jax.random.key(0), number)
        drawn = run.augment.draw(key, 16, 8, 8).images
        own = jax.tree.map(lambda leaf, n=n: leaf[:n], drawn)
        images = run.augment.apply(images, own)
        x = normalize(images, **run.config["normalize"])
        logits = network(variables, x)
        sums = evaluation_sums(logits, labels, jnp.ones(n, bool), label_smoothing=0.1)
        total = sums if total is None else total + sums
    expected, actual = summarize(total), evaluate(run)
    assert actual["count"] == expected["count"] == 30
    assert actual["loss"] == pytest.approx(expected["loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("data_parallel", "devices"), full_but([("jit", 8), ("pmap", 2)], ("pmap", 2))
)
def test_devices_see_the_same_augmented_images(augmented, data_parallel, devices):
    other = make_run(True, data_parallel, devices)
    expected = evaluate(augmented)
    actual = evaluate(other)
    assert actual["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    np.testing.assert_array_equal(actual["confusion"], expected["confusion"])


def test_draws_follow_the_key(augmented):
    losses = [evaluate(augmented, seed=seed)["loss"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert abs(losses[0] - losses[2]) > 1e-6


def test_only_validation_images_are_transformed(augmented):
    clean = make_run(validation=False)
    test_losses = [evaluate(run, "test")["loss"] for run in (augmented, clean)]
    assert test_losses[0] == pytest.approx(test_losses[1], abs=1e-6)
    val_losses = [evaluate(run, "val")["loss"] for run in (augmented, clean)]
    assert abs(val_losses[0] - val_losses[1]) > 1e-6
