import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support, top_k_accuracy_score
from tiers import full_but

from jaxattn.tasks.classification.metrics import NUM_BINS, evaluation_sums, summarize


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 200).astype(np.int32)
    logits = rng.normal(size=(200, 7)).astype(np.float32)
    logits[np.arange(200), labels] += 1
    return logits, labels


def summary_of(logits, labels, mask=None, **kwargs):
    mask = np.ones(len(labels), bool) if mask is None else mask
    return summarize(evaluation_sums(logits, labels, mask, **kwargs))


def test_per_class_figures_are_scikit_learns(predictions):
    logits, labels = predictions
    expected = precision_recall_fscore_support(
        labels, logits.argmax(1), labels=range(7)
    )
    summary = summary_of(logits, labels)
    for key, value in zip(
        ("precision", "recall", "f1", "support"), expected, strict=True
    ):
        np.testing.assert_allclose(summary[key], value)


def test_top5_is_scikit_learns(predictions):
    logits, labels = predictions
    expected = top_k_accuracy_score(labels, logits, k=5)
    assert summary_of(logits, labels)["top5_accuracy"] == pytest.approx(expected)


def test_a_class_never_predicted_has_precision_zero():
    logits, labels = jnp.eye(3)[jnp.array([0, 0])], jnp.array([0, 1])
    summary = summary_of(logits, labels)
    np.testing.assert_array_equal(summary["precision"], [0.5, 0, 0])
    np.testing.assert_array_equal(summary["f1"], [2 / 3, 0, 0])


def test_calibration_error_is_the_hand_computed():
    # Two predictions at confidence 0.75 (one right) and two at 0.5 (both right).
    p = np.array([[0.75, 0.25], [0.75, 0.25], [0.5, 0.5], [0.5, 0.5]])
    summary = summary_of(jnp.log(p), jnp.array([0, 1, 0, 0]))
    assert summary["ece"] == pytest.approx((2 * 0.25 + 2 * 0.5) / 4, abs=1e-6)
    assert summary["bin_count"][int(0.75 * NUM_BINS)] == 2


def test_padding_counts_nothing_even_if_it_is_not_a_number(predictions):
    logits, labels = predictions
    expected = summary_of(logits, labels)
    padded = np.concatenate([logits, np.full((56, 7), np.nan, np.float32)])
    padded_labels = np.concatenate([labels, np.zeros(56, np.int32)])
    actual = summary_of(padded, padded_labels, np.arange(256) < 200)
    for key, value in expected.items():
        np.testing.assert_allclose(actual[key], value, rtol=1e-6)


@pytest.mark.parametrize("batch_size", full_but([1, 7, 64, 200, 256], 7, 256))
def test_sums_of_batches_are_the_whole(predictions, batch_size):
    logits, labels = predictions
    step, total = jax.jit(evaluation_sums), None
    for start in range(0, 200, batch_size):
        positions = start + np.arange(batch_size)
        index = np.minimum(positions, 199)
        sums = step(logits[index], labels[index], positions < 200)
        total = sums if total is None else total + sums
    actual, expected = summarize(total), summary_of(logits, labels)
    assert actual["count"] == 200
    for key, value in expected.items():
        np.testing.assert_allclose(actual[key], value, rtol=1e-5)


def test_loss_is_smoothed_as_in_training(predictions):
    logits, labels = predictions
    plain = summary_of(logits, labels)["loss"]
    log_p = jax.nn.log_softmax(logits)
    expected = 0.9 * plain + 0.1 * float(-log_p.mean())
    actual = summary_of(logits, labels, label_smoothing=0.1)["loss"]
    assert actual == pytest.approx(expected, rel=1e-5)
