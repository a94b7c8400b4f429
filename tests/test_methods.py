"""Prediction rules against the reference code's own decisions."""

import numpy as np
import pytest

from jaxattn import UserError
from jaxattn.tasks.classification import methods
from jaxattn.tasks.classification.methods import (
    TTA,
    VIEWS,
    Adaptive,
    ClassSpecialized,
    Flip,
)
from jaxattn.tasks.classification.predictions import (
    align_predictions,
    write_predictions,
)


@pytest.fixture
def arrays(golden):
    return golden("inference_rules")


@pytest.fixture
def pipeline(arrays):
    """Logits by sorted ID, and the expected arrays."""
    order = np.argsort(arrays["pipeline/ids"])
    expected = {
        key.removeprefix("pipeline/"): value
        for key, value in arrays.items()
        if key.startswith("pipeline/")
    }
    np.testing.assert_array_equal(expected["ids"][order], expected["ids_sorted"])
    return expected["logits"][:, order], expected


def test_tta_of_eight_views_is_the_reference(pipeline):
    logits, expected = pipeline
    decision = TTA().decide(logits)
    np.testing.assert_array_equal(decision.labels, expected["tta8_labels"])
    np.testing.assert_allclose(
        decision.probabilities, expected["tta8_probs"], atol=1e-6
    )


def test_tta_of_six_views_is_the_reference(pipeline):
    logits, expected = pipeline
    decision = TTA(views=VIEWS[:6]).decide(logits[:6])
    np.testing.assert_array_equal(decision.labels, expected["tta6_labels"])


def test_class_specialized_is_the_reference(pipeline):
    logits, expected = pipeline
    method = ClassSpecialized()
    np.testing.assert_array_equal(logits[0].argmax(-1), expected["spec_initial"])
    np.testing.assert_array_equal(method.is_unsure(logits), expected["spec_low_conf"])
    labels = method.decide(logits).labels
    np.testing.assert_array_equal(labels, expected["spec_labels"])


def test_adaptive_is_the_reference(pipeline):
    logits, expected = pipeline
    method = Adaptive()
    labels = method.decide(logits).labels
    np.testing.assert_array_equal(labels, expected["adaptive_labels"])
    _, rules = method.choose(
        expected["tta8_labels"], expected["spec_labels"], methods.softmax(logits[0])
    )
    np.testing.assert_array_equal(rules, expected["adaptive_branch"])
    assert len(set(rules)) == 6  # rule 2 cannot fire in the pipeline


def test_every_rule_of_adaptive_is_the_reference(arrays):
    labels, rules = Adaptive().choose(
        arrays["rule/tta_labels"],
        arrays["rule/spec_labels"],
        methods.softmax(arrays["rule/base_logits"]),
    )
    np.testing.assert_array_equal(labels, arrays["rule/labels"])
    np.testing.assert_array_equal(rules, arrays["rule/branch"])
    assert set(rules) == set(range(1, 8))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_ensemble_of_files_is_the_reference(arrays, tmp_path, count):
    ids = arrays[f"ensemble{count}/ids"]
    labels = arrays[f"ensemble{count}/labels"]
    paths = [tmp_path / f"{i}.csv" for i in range(count)]
    for path, file_ids, file_labels in zip(paths, ids, labels, strict=True):
        write_predictions(path, file_ids.tolist(), file_labels)
    out_ids, aligned, _ = align_predictions(paths)
    np.testing.assert_array_equal(out_ids, arrays[f"ensemble{count}/out_ids"])
    expected = arrays[f"ensemble{count}/out_labels"]
    np.testing.assert_array_equal(methods.vote(aligned), expected)


def test_vote_takes_any_numbers():
    labels = np.array([[7, 10**8], [7, 3], [2, 10**8]])
    np.testing.assert_array_equal(methods.vote(labels), [7, 10**8])


def test_hard_classes_must_be_classes():
    method = Adaptive(specialized=ClassSpecialized(thresholds=(0.5,) * 4))
    with pytest.raises(
        UserError, match=r"hard_classes=\(2, 3, 5\): must be in \[0, 3\]"
    ):
        method.decide(np.zeros((8, 2, 4)))


def test_flip_is_the_reference(arrays):
    labels = Flip().decide(arrays["flip/logits"]).labels
    np.testing.assert_array_equal(labels, arrays["flip/labels"])


@pytest.mark.parametrize("method", [TTA(), ClassSpecialized(), Adaptive()])
def test_the_label_has_the_largest_probability(pipeline, method):
    labels, probabilities = method.decide(pipeline[0])
    np.testing.assert_array_equal(probabilities.argmax(-1), labels)
    np.testing.assert_allclose(probabilities.sum(-1), 1)


def test_thresholds_must_fit_the_classes():
    with pytest.raises(UserError, match="10 given, the network has 7 classes"):
        ClassSpecialized().decide(np.zeros((8, 3, 7)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TTA(weights=(1, 2)), r"tta.weights=\(1, 2\): must be 8 numbers"),
        (lambda: TTA(temperature=0.0), "tta.temperature=0.0: must be finite"),
        (lambda: TTA(weights=(1,) * 7 + (np.nan,)), "not all 0"),
        (lambda: TTA(weights=(np.inf,) * 8), "not all 0"),
        (lambda: ClassSpecialized(temperature=-1.0), "specialized.temperature=-1.0"),
        (lambda: Adaptive(tta=TTA(views=VIEWS[:3])), "must be the same"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
