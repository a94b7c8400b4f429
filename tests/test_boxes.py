"""Boxes against torchvision's numbers, and NMS against the loop that defines it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_goldens import assert_close, read
from tiers import full_but

from jaxattn.ops import boxes as ops

THRESHOLDS = (0.3, 0.5, 0.7)


@pytest.fixture(scope="module")
def arrays():
    return read("ops_boxes")


def kept(boxes, scores, threshold, **kwargs):
    kwargs.setdefault("max_outputs", max(1, len(scores)))
    run = jax.jit(functools.partial(ops.nms, threshold=threshold, **kwargs))
    indices, found = jax.device_get(run(jnp.asarray(boxes), jnp.asarray(scores)))
    assert not indices[~found].any()
    return indices[found].tolist()


def greedy(boxes, scores, threshold, ids):
    """Indices that the loop keeps, in float32 as ours."""
    boxes = boxes.astype(np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    result = []
    for i in np.argsort(-scores, kind="stable"):
        for j in result:
            low = np.maximum(boxes[i, :2], boxes[j, :2])
            high = np.minimum(boxes[i, 2:], boxes[j, 2:])
            inter = np.prod(np.maximum(high - low, 0))
            with np.errstate(invalid="ignore"):
                iou = inter / (areas[i] + areas[j] - inter)
            if ids[i] == ids[j] and float(iou) > threshold:
                break
        else:
            result.append(i)
    return result


# Overlaps ---------------------------------------------------------------------------


def test_overlaps_are_torchvisions(arrays):
    pairs = arrays["iou/boxes1"], arrays["iou/boxes2"]
    assert_close(ops.box_iou(*pairs), arrays["iou/iou"], 1e-6)
    assert_close(ops.box_giou(*pairs), arrays["iou/giou"], 1e-6)


def test_empty_boxes_overlap_nothing_by_least_union():
    empty = jnp.zeros((1, 4))
    assert jnp.isnan(ops.box_iou(empty, empty))
    assert ops.box_iou(empty, empty, least_union=1e-6) == 0


# Codes ------------------------------------------------------------------------------

CODERS = {
    "tv_w1": {},
    "tv_w10": {"weights": (10, 10, 5, 5)},
    "mm_one": {"clamps_shrinking": True},
    "mm_std": {"weights": (10, 10, 5, 5), "clamps_shrinking": True},
    "mm_mean": {
        "weights": (20, 10, 10 / 3, 5),
        "means": (0.05, -0.1, 0.2, 0.3),
        "clamps_shrinking": True,
    },
}


@pytest.mark.parametrize("name", CODERS)
def test_codes_are_their_authors(arrays, name):
    anchors, gt = arrays["coder/anchors"], arrays["coder/gt"]
    deltas = arrays["coder/deltas"]
    deltas = deltas * 5 if name not in ("tv_w1", "mm_one") else deltas
    deltas = (deltas if name.startswith("tv") else deltas[:, :4]).reshape(40, -1, 4)
    kwargs = CODERS[name]
    code = {k: v for k, v in kwargs.items() if k != "clamps_shrinking"}

    @jax.jit
    def run(deltas):
        decode = lambda d: ops.decode_boxes(d, anchors[:, None], **kwargs)  # noqa: E731
        decoded, pull = jax.vjp(lambda d: jnp.clip(decode(d), -1000, 1000), deltas)
        boxes = decode(deltas)
        clipped = ops.clip_boxes(boxes, jnp.array([150, 200]))
        gradient = pull(jnp.ones_like(decoded))
        return boxes, clipped, *gradient, ops.encode_boxes(gt, anchors, **code)

    boxes, clipped, gradient, encoded = run(deltas)
    prefix = f"coder/{name}"
    assert_close(encoded, arrays[f"{prefix}/encode"], 1e-5)
    assert_close(boxes.reshape(40, -1), arrays[f"{prefix}/decode"], 1e-5)
    assert_close(clipped.reshape(40, -1), arrays[f"{prefix}/decode_clipped"], 1e-5)
    if f"{prefix}/grad_deltas" in arrays:
        assert_close(gradient.reshape(40, -1), arrays[f"{prefix}/grad_deltas"], 1e-5)


def test_decoding_undoes_encoding(arrays):
    anchors, gt = arrays["coder/anchors"], arrays["coder/gt"]
    kwargs = {"weights": (10, 10, 5, 5), "means": (0.1, 0, 0.2, 0)}
    code = ops.encode_boxes(gt, anchors, **kwargs)
    assert_close(ops.decode_boxes(code, anchors, **kwargs), gt, 1e-5)


# Non-maximum suppression ------------------------------------------------------------


@pytest.mark.parametrize("threshold", full_but(THRESHOLDS, 0.3))
def test_nms_is_torchvisions(arrays, threshold):
    for scores, key in (("scores", "keep"), ("scores_tied", "keep_tied")):
        actual = kept(arrays["nms/boxes"], arrays[f"nms/{scores}"], threshold)
        assert actual == arrays[f"nms/{key}_{threshold}"].tolist()
    for case in ("batched_nms", "batched_nms_large"):
        boxes, scores, ids = (
            arrays[f"{case}/{key}"] for key in ("boxes", "scores", "classes")
        )
        actual = kept(boxes, scores, threshold, ids=jnp.asarray(ids))
        assert actual == arrays[f"{case}/keep_{threshold}"].tolist()


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_nms_compares_with_the_threshold_as_torchvision(arrays, threshold):
    boxes, scores = (arrays[f"nms_exact/{key}"] for key in ("boxes", "scores"))
    expected = arrays[f"nms_exact/keep_{threshold}"].tolist()
    assert kept(boxes, scores, threshold) == expected


def test_nms_of_equal_scores_keeps_the_first(arrays):
    boxes = arrays["nms/boxes"]
    equal = np.full(len(boxes), 0.5, np.float32)
    assert kept(boxes, equal, 0.5) == arrays["nms_all_equal/keep_0.5"].tolist()


def test_nms_keeps_empty_boxes(arrays):
    boxes, scores = (arrays[f"nms_degenerate/{key}"] for key in ("boxes", "scores"))
    assert kept(boxes, scores, 0.5) == arrays["nms_degenerate/keep_0.5"].tolist()


def test_nms_of_none_keeps_none():
    assert kept(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0.5) == []


@pytest.mark.parametrize(
    ("N", "most"), full_but([(300, 25), (40, 40), (600, 600)], (300, 25))
)
def test_nms_is_the_greedy_loop(N, most):
    rng = np.random.default_rng(N + most)
    run = jax.jit(jax.vmap(functools.partial(ops.nms, threshold=0.4, max_outputs=most)))
    corners = rng.integers(0, 30, (3, N, 2)).astype(np.float32)
    sides = rng.integers(0, 25, (3, N, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + sides], -1)
    scores = rng.integers(0, 20, (3, N)).astype(np.float32) / 20  # many are tied
    ids = rng.integers(0, 3, (3, N))
    ids[2] = 0
    valid = rng.random((3, N)) < 0.8
    valid[1] = False
    indices, found = jax.device_get(run(boxes, scores, ids=ids, valid=valid))
    for i in range(3):
        there = np.flatnonzero(valid[i])
        expected = greedy(boxes[i, there], scores[i, there], 0.4, ids[i, there])
        assert indices[i, found[i]].tolist() == there[expected][:most].tolist()


def test_nms_passes_no_gradients_and_lets_them_be_taken(arrays):
    boxes, scores = jnp.asarray(arrays["nms/boxes"]), jnp.asarray(arrays["nms/scores"])

    def best(scores):
        indices, found = ops.nms(boxes, scores, 0.5, max_outputs=10)
        return jnp.sum(jnp.where(found, scores[indices], 0))

    assert jnp.sum(jax.jit(jax.grad(best))(scores)) == 10
