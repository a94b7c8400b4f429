"""Losses and counts of the segmentation task, against arrays and plain NumPy."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN

from jaxattn.data.augment.transform import IGNORED
from jaxattn.errors import UserError
from jaxattn.tasks.segmentation import Segmentation, losses, metrics
from jaxattn.training.weighing import weighed


def rng(seed=0):
    return np.random.default_rng(seed)


def batch(n=3, size=6, classes=4, seed=0):
    """Logits, and label maps of which the examples ignore different shares."""
    logits = 3 * rng(seed).standard_normal((n, size, size, classes)).astype(np.float32)
    label_map = rng(seed + 1).integers(0, classes, (n, size, size), np.uint8)
    for i in range(n):
        label_map[i, : i + 1] = IGNORED
    return logits, label_map


@functools.partial(jax.jit, static_argnums=0)
def step_loss(task, outputs, label_map):
    """The loss of a step: the mean over the examples of what the task measures."""
    targets = {"label_map": label_map}
    _, targets, _ = weighed(task, (None, targets, targets), None)
    measured = task.measure(outputs, targets)
    return jnp.mean(measured["loss"]), jnp.mean(measured["pixel_accuracy"])


def log_softmax(logits):
    shifted = np.asarray(logits, np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def true_log(logits, label_map):
    """log p of the true class of every pixel that is not ignored, by example."""
    logs = log_softmax(logits)
    for each, labels in zip(logs, label_map, strict=True):
        valid = labels != IGNORED
        yield each[valid][np.arange(valid.sum()), labels[valid]]


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("plain/mean", {}),
        ("weighted/mean", {"class_weights": "ce/weight"}),
        ("mmseg_mean", {"avg_non_ignore": False}),
    ],
)
def test_loss_and_gradient_are_pytorchs_over_the_batch(name, keywords):
    golden = np.load(GOLDEN / "dense" / "ops_losses.npz")
    keywords = {
        k: tuple(golden[v].tolist()) if isinstance(v, str) else v
        for k, v in keywords.items()
    }
    logits = golden["ce/logits"].transpose(0, 2, 3, 1)
    labels = golden["ce/labels"].astype(np.uint8)
    counts = (labels != IGNORED).sum((1, 2))
    assert len(set(counts.tolist())) > 1  # else a mean of means would pass
    task = Segmentation(**keywords)
    fn = jax.jit(jax.value_and_grad(lambda x: step_loss(task, x, labels)[0]))
    loss, gradient = fn(logits)
    np.testing.assert_allclose(loss, golden[f"ce/{name}"], rtol=1e-6)
    if (key := f"ce/{name.split('/')[0]}/grad") in golden:
        wanted = golden[key].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["fcn", "deeplabv3", "upernet"])
def test_losses_of_published_networks(name):
    """The mean over pixels of logits that torchvision and transformers have made."""
    folder = os.environ.get("JAXATTN_DENSE_GOLDENS")
    if folder is None:
        pytest.skip("the environment variable JAXATTN_DENSE_GOLDENS names no folder")
    golden = np.load(pathlib.Path(folder) / f"{name}.npz")
    labels = golden["labels"].astype(np.uint8)
    logits = golden["eval/logits"].transpose(0, 2, 3, 1)
    loss, _ = step_loss(Segmentation(), logits, labels)
    np.testing.assert_allclose(loss, golden["eval/loss/out"], rtol=1e-5)


def test_loss_of_the_auxiliary_head_is_added():
    logits, labels = batch()
    other, _ = batch(seed=5)
    main, aux = (step_loss(Segmentation(), x, labels)[0] for x in (logits, other))
    both, _ = step_loss(Segmentation(aux_weight=0.3), (logits, other), labels)
    np.testing.assert_allclose(both, main + 0.3 * aux, rtol=1e-6)


def test_pixel_accuracy_of_a_step_is_over_the_pixels_of_the_batch():
    logits, labels = batch()
    valid = labels != IGNORED
    wanted = (logits.argmax(-1) == labels)[valid].mean()
    _, accuracy = step_loss(Segmentation(), logits, labels)
    np.testing.assert_allclose(accuracy, wanted, rtol=1e-6)


EVERY = {
    "class_weights": (1.0, 2.0, 0.5, 0.0),
    "label_smoothing": 0.1,
    "focal_gamma": 0.5,
    "dice_weight": 1.0,
    "ohem_threshold": 0.7,
    "ohem_min_kept": 5,
}


@pytest.mark.parametrize("avg_non_ignore", [True, False])
def test_where_all_is_ignored_loss_and_gradient_are_0(avg_non_ignore):
    """Of a batch, and of one example among others."""
    task = Segmentation(avg_non_ignore=avg_non_ignore, **EVERY)
    logits, labels = batch()
    fn = jax.jit(jax.value_and_grad(lambda x, y: step_loss(task, x, y)[0]))
    loss, gradient = fn(1e4 * logits, np.full_like(labels, IGNORED))
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)
    labels[1] = IGNORED
    loss, gradient = fn(logits, labels)
    assert np.isfinite(loss)
    assert loss > 0
    np.testing.assert_array_equal(np.asarray(gradient)[labels == IGNORED], 0)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0]).max() > 0


def test_losses_are_stable_where_logits_are_large():
    _, labels = batch()
    logits = 1e4 * np.eye(4, dtype=np.float32)[np.minimum(labels, 3)]
    task = Segmentation(focal_gamma=0.5, dice_weight=1.0)
    loss, gradient = jax.value_and_grad(lambda x: step_loss(task, x, labels)[0])(logits)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    assert np.isfinite(gradient).all()
    wrong, gradient = jax.value_and_grad(lambda x: step_loss(task, x, labels)[0])(
        -logits
    )
    assert wrong > 1e3
    assert np.isfinite(gradient).all()


def test_focal_loss_weighs_every_pixel_by_its_own_probability():
    logits, labels = batch()
    logs = np.concatenate(list(true_log(logits, labels)))
    wanted = np.mean(-((1 - np.exp(logs)) ** 2) * logs)
    loss, _ = step_loss(Segmentation(focal_gamma=2.0), logits, labels)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_smoothed_loss_is_that_of_a_smoothed_target():
    logits, labels = batch()
    logs, valid = log_softmax(logits), labels != IGNORED
    target = 0.8 * np.eye(4)[labels[valid]] + 0.2 / 4
    wanted = -(target * logs[valid]).sum(-1).mean()
    loss, _ = step_loss(Segmentation(label_smoothing=0.2), logits, labels)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_dice_loss_is_of_the_classes_that_an_example_holds():
    logits, labels = batch()
    labels[labels == 3] = 2  # class 3 is in none
    wanted = []
    for logs, own in zip(log_softmax(logits), labels, strict=True):
        p, t = np.exp(logs[own != IGNORED]), np.eye(4)[own[own != IGNORED]]
        scores = 2 * (p * t).sum(0) / ((p * p).sum(0) + t.sum(0))
        wanted.append(np.mean(1 - scores[t.sum(0) > 0]))
    own = jax.jit(losses.dice_loss)(logits, labels)
    np.testing.assert_allclose(own, wanted, rtol=1e-5)
    plain, _ = step_loss(Segmentation(), logits, labels)
    loss, _ = step_loss(Segmentation(dice_weight=0.5), logits, labels)
    np.testing.assert_allclose(loss, plain + 0.5 * np.mean(wanted), rtol=1e-5)


@pytest.mark.parametrize(("threshold", "kept"), [(0.3, 0), (1e-6, 7), (0.3, 10**6)])
def test_hard_pixels_are_those_of_mmseg(threshold, kept):
    """Of one image, where a batch's and an image's are the same."""
    logits, labels = batch()
    hard_pixels = jax.jit(losses.hard_pixels, static_argnums=(2, 3))
    masks = hard_pixels(logits, labels, threshold, kept)
    for mask, logs, own in zip(masks, true_log(logits, labels), labels, strict=True):
        likely = np.exp(logs)
        least = np.sort(likely)[min(kept, len(likely) - 1)]
        wanted = likely < max(least, threshold)
        np.testing.assert_array_equal(mask[own != IGNORED], wanted)
        assert not mask[own == IGNORED].any()


def test_hard_pixels_loss_is_divided_by_all_that_are_not_ignored():
    logits, labels = batch()
    task = Segmentation(ohem_threshold=0.3, ohem_min_kept=0)
    logs = np.concatenate(list(true_log(logits, labels)))
    wanted = -logs[np.exp(logs) < 0.3].sum() / len(logs)
    np.testing.assert_allclose(step_loss(task, logits, labels)[0], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"aux_weight": -1.0}, "loss.aux_weight=-1.0"),
        ({"class_weights": (0.0, 0.0)}, "loss.class_weights"),
        ({"ohem_threshold": 0.0}, "loss.ohem_threshold=0.0"),
        ({"label_smoothing": 1.0}, "loss.label_smoothing=1.0"),
    ],
)
def test_loss_out_of_range_is_refused(keywords, text):
    with pytest.raises(UserError, match=text):
        Segmentation(**keywords)


# Counts -----------------------------------------------------------------------------


def test_figures_are_the_goldens():
    """Confusion exactly; one class only predicted, and one in neither."""
    golden = np.load(GOLDEN / "dense" / "segmentation_metrics.npz")
    label_map = golden["labels"].astype(np.uint8)
    predicted = golden["predictions"].astype(np.uint8)
    confusion = jax.jit(metrics.confusions, static_argnums=2)(label_map, predicted, 6)
    total = metrics.Counts.of(confusion.sum(0)).total()
    np.testing.assert_array_equal(total, golden["confusion"])
    figures = metrics.figures_of(total)
    for key, name in (
        ("iou", "iou"),
        ("accuracy", "class_accuracy"),
        ("mean_iou", "miou"),
        ("mean_accuracy", "mean_accuracy"),
        ("pixel_accuracy", "pixel_accuracy"),
    ):
        np.testing.assert_allclose(figures[key], golden[name], rtol=1e-12)
    assert np.isnan(figures["iou"][5])
    assert figures["iou"][4] == 0


def test_iou_of_an_image_is_of_its_own_classes():
    golden = np.load(GOLDEN / "dense" / "segmentation_metrics.npz")
    label_map = golden["labels"].astype(np.uint8)
    predicted = golden["predictions"].astype(np.uint8)
    label_map[1] = IGNORED
    confusion = jax.jit(metrics.confusions, static_argnums=2)(label_map, predicted, 6)
    own = [metrics.figures_of(np.asarray(each))["mean_iou"] for each in confusion]
    own[1] = np.nan
    np.testing.assert_allclose(metrics.image_iou(confusion), own, rtol=1e-6)


def test_counts_are_exact_beyond_32_bits():
    values = [2**31 - 1, 5, 2**31 - 1, 2**31 - 1]
    total = metrics.Counts.of(jnp.asarray([values[0]], jnp.int32))
    for value in values[1:]:
        total = total + metrics.Counts.of(jnp.asarray([value], jnp.int32))
    assert total.total().tolist() == [sum(values)]


@pytest.mark.parametrize("keywords", [{}, EVERY, {"avg_non_ignore": False}])
def test_evaluation_of_parts_is_that_of_the_whole(keywords):
    """Padding counts nothing, whatever it holds; the loss is that of training."""
    task = Segmentation(**keywords)
    logits, labels = batch()
    evaluate = jax.jit(task.evaluate)

    def sums_of(chosen):
        x, y = logits[chosen].copy(), labels[chosen].copy()
        mask = np.arange(2) < len(set(chosen))
        x[~mask], y[~mask] = np.nan, 0
        return evaluate(x, {"label_map": y}, mask)[0]

    summary = task.summarize(sums_of([0, 1]) + sums_of([2, 2]))
    valid = labels != IGNORED
    wanted = np.zeros((4, 4), int)
    np.add.at(wanted, (labels[valid], logits.argmax(-1)[valid]), 1)
    np.testing.assert_array_equal(summary["confusion"], wanted)
    assert summary["count"] == 3
    loss, accuracy = step_loss(task, logits, labels)
    np.testing.assert_allclose(summary["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(summary["pixel_accuracy"], accuracy, rtol=1e-6)


def test_figures_of_no_pixel_are_0():
    figures = metrics.figures_of(np.zeros((3, 3), np.int64))
    assert figures["mean_iou"] == figures["pixel_accuracy"] == 0
    assert np.isnan(figures["iou"]).all()
