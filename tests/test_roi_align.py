"""RoIAlign against torchvision's values and gradients, in both formulations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_goldens import assert_close, nhwc, read
from tiers import full_but

from jaxattn.ops import roi_align as ops

# Of float32 in torch against float64 the worst are 2e-5, near the border of a position.
TOLERANCE = 3e-5


@pytest.fixture(params=["products", "gathers"])
def formulation(request, monkeypatch):
    is_product = request.param == "products"
    monkeypatch.setattr(ops, "_multiplies", lambda *_: is_product)
    return request.param


@pytest.fixture(scope="module")
def arrays():
    return read("ops_roi_align")


CASES = [
    ("aligned1_sr-1_4x3", (4, 3), 0, True),
    ("aligned0_sr2_7x7", (7, 7), 2, False),
    ("aligned0_sr2_3x5", (3, 5), 2, False),
    ("aligned0_sr1_4x4", (4, 4), 1, False),
    ("aligned0_sr-1_4x3", (4, 3), 0, False),
    ("aligned1_sr2_7x7", (7, 7), 2, True),
]


def computed(maps, boxes, levels, cotangent, **kwargs):
    """Bins and the gradients of the maps, of one image, by one program."""

    def run(maps, boxes, levels, cotangent):
        pool = functools.partial(ops.roi_align, boxes=boxes, levels=levels, **kwargs)
        y, pull = jax.vjp(pool, maps)
        return y, pull(cotangent)[0]

    return jax.jit(jax.vmap(run))(maps, boxes, levels, cotangent)


@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize(
    ("name", "size", "ratio", "aligned"), full_but(CASES, CASES[0])
)
def test_roi_align_is_torchvisions(arrays, name, size, ratio, aligned):
    rois = arrays["rois"]
    count = np.bincount(rois[:, 0].astype(int)).max()
    # By image, padded with boxes whose cotangent is 0.
    places = [np.flatnonzero(rois[:, 0] == i) for i in (0, 1)]
    boxes, cotangent = np.zeros((2, count, 4)), np.zeros((2, count, *size, 4))
    for i, own in enumerate(places):
        boxes[i, : len(own)] = rois[own, 1:]
        cotangent[i, : len(own)] = nhwc(arrays[f"{name}/cotangent"][own])
    y, (gradient,) = computed(
        [jnp.asarray(nhwc(arrays["input"]))],
        jnp.asarray(boxes, jnp.float32),
        jnp.zeros((2, count), jnp.int32),
        jnp.asarray(cotangent, jnp.float32),
        strides=[4],
        output_size=size,
        sampling_ratio=ratio,
        aligned=aligned,
        max_samples=8,
    )
    for i, own in enumerate(places):
        expected = nhwc(arrays[f"{name}/output"][own])
        assert_close(y[i, : len(own)], expected, TOLERANCE)
    assert_close(gradient, nhwc(arrays[f"{name}/grad_input"]), TOLERANCE)


@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("scale", full_but([56, 224], 56))
def test_pooling_from_a_pyramid_is_torchvisions(arrays, scale):
    boxes = jnp.stack([arrays["multi/boxes0"], arrays["multi/boxes1"]])
    maps = [jnp.asarray(nhwc(arrays[f"multi/feature{i}"])) for i in range(4)]
    levels = ops.roi_levels(boxes, finest_scale=scale / 4)
    prefix = f"multi/scale{scale}"
    np.testing.assert_array_equal(levels.reshape(-1), arrays[f"{prefix}/levels"])
    size = arrays[f"{prefix}/output"].shape[2:]
    cotangent = nhwc(arrays[f"{prefix}/cotangent"])
    y, gradients = computed(
        maps,
        boxes,
        levels,
        jnp.asarray(cotangent.reshape(2, 12, *cotangent.shape[1:])),
        strides=(4, 8, 16, 32),
        output_size=size,
    )
    expected = nhwc(arrays[f"{prefix}/output"])
    assert_close(y.reshape(expected.shape), expected, TOLERANCE)
    for i, gradient in enumerate(gradients):
        expected = nhwc(arrays[f"{prefix}/grad_feature{i}"])
        assert_close(gradient, expected, TOLERANCE, f"level {i}")


def test_levels_are_mmdetections(arrays):
    boxes = np.concatenate([arrays["multi/boxes0"], arrays["multi/boxes1"]])
    actual = ops.roi_levels(boxes, adds_inside=True)
    expected = read("mm_variants")["roi/levels_finest56"]
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.usefixtures("formulation")
def test_adaptive_sampling_is_bounded():
    x = jax.random.normal(jax.random.key(0), (10, 10, 1))
    box, level = jnp.array([[0.0, 0.0, 9.0, 9.0]]), jnp.zeros(1, jnp.int32)
    pool = functools.partial(
        ops.roi_align, [x], box, level, strides=[1], output_size=(1, 1)
    )
    bounded = pool(sampling_ratio=0, max_samples=3)
    np.testing.assert_allclose(bounded, pool(sampling_ratio=3), rtol=1e-5)
    assert not np.allclose(bounded, pool(sampling_ratio=2))


def test_masks_are_cropped_as_torchvision_does():
    arrays = read("mask_head")
    for i in (0, 1):
        actual = ops.crop_masks(
            jnp.asarray(arrays[f"target/{i}/masks"]),
            jnp.asarray(arrays[f"proposals/{i}"]),
            jnp.asarray(arrays[f"matched_idxs/{i}"]),
        )
        assert_close(actual, arrays[f"mask_targets/{i}"], TOLERANCE)
