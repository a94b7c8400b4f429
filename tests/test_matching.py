"""Assigners against torchvision's and MMDetection's, and samplers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_goldens import read

from jaxattn.ops import matching

RULES = {
    "retina": {"high": 0.5, "low": 0.4, "min_iou": 0.0},
    "rpn": {"high": 0.7, "low": 0.3, "min_iou": 0.3},
    "roi": {"high": 0.5, "low": 0.5},
}


@pytest.mark.parametrize("prefix", ["", "zero/", "exact/"])
@pytest.mark.parametrize("rule", RULES)
def test_matches_are_their_authors(rule, prefix):
    arrays = read("ops_matcher")
    iou = arrays[f"{prefix}iou"]
    # Padding, of any IoU, changes nothing.
    padded = jnp.concatenate([iou, jnp.ones_like(iou[:1]), jnp.full_like(iou[:1], -1)])
    valid = jnp.arange(len(padded)) < len(iou)
    for name in matching.LOW_QUALITY:
        low_quality = None if rule == "roi" else name
        match = functools.partial(
            matching.match, low_quality=low_quality, **RULES[rule]
        )
        key = f"{prefix}{rule}/{name}"
        np.testing.assert_array_equal(jax.jit(match)(padded, valid), arrays[key])


def test_without_boxes_all_is_background():
    for G in (0, 3):
        matched = matching.match(
            jnp.full((G, 5), jnp.nan),
            jnp.zeros(G, bool),
            high=0.5,
            low=0.4,
            low_quality="torchvision",
            candidates=jnp.arange(5) < 4,
        )
        assert matched.tolist() == [matching.BACKGROUND] * 4 + [matching.IGNORED]


def test_a_candidate_that_is_not_there_is_no_ones_best():
    iou = jnp.array([[0.9, 0.2, 0.1]])
    there = jnp.array([False, True, True])
    for low_quality in matching.LOW_QUALITY:
        matched = matching.match(
            iou,
            jnp.array([True]),
            high=0.7,
            low=0.3,
            low_quality=low_quality,
            candidates=there,
        )
        assert matched.tolist() == [matching.IGNORED, 0, matching.BACKGROUND]


# Samplers ---------------------------------------------------------------------------

MATCHED = jnp.array([0] * 30 + [matching.BACKGROUND] * 50 + [matching.IGNORED] * 20)


@functools.partial(jax.jit, static_argnames=("number", "positive_fraction"))
def sampled(key, matched, number, positive_fraction=0.5):
    return matching.sample(
        key, matched, number=number, positive_fraction=positive_fraction
    )


@pytest.mark.parametrize(
    ("number", "positives", "negatives"),
    [(40, 20, 20), (100, 30, 50), (70, 30, 40), (1000, 30, 50)],
)
def test_a_sample_has_few_positives_and_fills_up_with_negatives(
    number, positives, negatives
):
    positive, negative = sampled(jax.random.key(0), MATCHED, number)
    assert jnp.sum(positive) == positives
    assert jnp.sum(negative) == negatives
    assert not jnp.any(positive & (MATCHED != 0))
    assert not jnp.any(negative & (MATCHED != matching.BACKGROUND))


def test_samples_are_uniform():
    keys = jax.random.split(jax.random.key(1), 3000)
    draw = jax.vmap(lambda key: sampled(key, MATCHED, 20))
    positive, negative = (jnp.mean(mask, 0) for mask in draw(keys))
    # 10 of 30 and of 50; five deviations of a share of 3000.
    np.testing.assert_allclose(positive[:30], 1 / 3, atol=0.045)
    np.testing.assert_allclose(negative[30:80], 1 / 5, atol=0.04)


def test_a_sample_does_not_depend_on_padding():
    key, padded = jax.random.key(2), jnp.pad(MATCHED, (0, 9), constant_values=-2)
    for mask, longer in zip(
        sampled(key, MATCHED, 40), sampled(key, padded, 40), strict=True
    ):
        np.testing.assert_array_equal(mask, longer[: len(MATCHED)])


def test_sampled_places_rise():
    sample = matching.Sample(
        jnp.array([False, True, False, True]), jnp.array([True, False, False, False])
    )
    for number, expected in ((3, [0, 1, 3]), (6, [0, 1, 3])):
        places, there = matching.sampled_indices(sample, number)
        assert len(places) == number
        assert places[there].tolist() == expected
