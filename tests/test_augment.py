"""Transforms on given parameters, and the distribution of what is drawn."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn import UserError
from jaxattn.data import augment
from jaxattn.data.augment import Augment

SIZE = 32
RECIPE = {
    "flip_probability": 0.5,
    "crop_padding_px": 4,
    "erase_probability": 0.5,
    "erase_area": (0.04, 0.2),
    "erase_aspect": (0.5, 2.0),
    "mixup_probability": 0.3,
    "mixup_alpha": 0.5,
    "cutmix_probability": 0.3,
    "cutmix_alpha": 0.5,
}


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(1, 256, (6, 12, 10, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("fill", "mode"), [("zero", "constant"), ("reflect", "reflect"), ("edge", "edge")]
)
def test_crop_is_numpys_pad_and_slice(images, fill, mode):
    corners = jnp.array([[0, 0], [6, 6], [3, 3], [0, 6], [5, 1], [2, 4]])
    cropped = augment.crop(images, corners, 3, fill)
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), mode=mode)
    for i, (row, column) in enumerate(np.asarray(corners)):
        expected = padded[i, row : row + 12, column : column + 10]
        np.testing.assert_array_equal(cropped[i], expected)
    assert cropped.dtype == jnp.uint8


def test_flip_mirrors_only_the_chosen(images):
    flipped = augment.flip(images, jnp.arange(6) % 2 == 0)
    np.testing.assert_array_equal(flipped[0], images[0, :, ::-1])
    np.testing.assert_array_equal(flipped[1], images[1])


def test_erase_makes_the_rectangle_black(images):
    boxes = jnp.tile(jnp.array([[2, 3, 5, 9]]), (6, 1)).at[1].set(0)
    erased = np.asarray(augment.erase(images, boxes))
    assert (erased[0, 2:5, 3:9] == 0).all()
    assert (erased[0] == 0).all(-1).sum() == 3 * 6  # no other pixel is 0
    np.testing.assert_array_equal(erased[1], images[1])


def test_normalize_is_torchvisions(images):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (np.asarray(images) / 255 - np.array(mean)) / np.array(std)
    actual = augment.normalize(images, mean=mean, std=std)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_crop_corners_are_uniform():
    corners = np.asarray(augment.draw_crop(jax.random.key(0), 20_000, 4))
    for axis in (0, 1):
        counts = np.bincount(corners[:, axis], minlength=9)
        assert len(counts) == 9
        # 2,222 expected, standard deviation 44.
        assert np.abs(counts - 20_000 / 9).max() < 5 * 44


def test_erased_rectangles_have_the_specified_distribution():
    n = 20_000
    boxes = np.asarray(
        augment.draw_erase(
            jax.random.key(0),
            n,
            SIZE,
            SIZE,
            probability=0.5,
            area=(0.04, 0.2),
            aspect=(0.5, 2.0),
        )
    )
    h, w = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    erased = h > 0
    assert abs(erased.mean() - 0.5) < 5 * 0.5 / np.sqrt(n)
    h, w, boxes = h[erased], w[erased], boxes[erased]
    share = h * w / SIZE**2
    # Sides are rounded to pixels, the shortest is 4.5.
    assert 0.03 < share.min() < 0.045
    assert 0.19 < share.max() < 0.22
    assert abs(share.mean() - 0.12) < 0.002
    assert abs(np.log(h / w).mean()) < 0.02
    assert 0.4 < (h / w).min() < 0.55
    assert boxes.min() >= 0
    assert boxes.max() <= SIZE
    # The corner is uniform over the valid positions, both ends included.
    free = SIZE - h
    assert abs((boxes[:, 0] / free).mean() - 0.5) < 0.02
    assert (boxes[:, 0] == 0).any()
    assert (boxes[:, 0] == free).any()


def test_an_image_that_no_rectangle_fits_is_left_alone():
    boxes = augment.draw_erase(
        jax.random.key(0), 64, 8, 8, probability=1.0, area=(0.99, 1.0), aspect=(1, 1)
    )
    chex.assert_trees_all_equal(boxes, jnp.zeros((64, 4), jnp.int32))


@pytest.fixture(scope="module")
def mixes():
    draw = lambda key: augment.draw_mix(  # noqa: E731
        key, 4, SIZE, SIZE,
        mixup_probability=0.3, mixup_alpha=0.5,
        cutmix_probability=0.3, cutmix_alpha=0.5,
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(0), 20_000)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(keys))


def test_batches_are_mixed_with_the_specified_probabilities(mixes):
    is_mixup = mixes.pixel_weight < 1
    is_cutmix = ~is_mixup & (mixes.label_weight < 1)
    tolerance = 5 * np.sqrt(0.3 * 0.7 / len(is_mixup))
    assert abs(is_mixup.mean() - 0.3) < tolerance
    # A box without area leaves the batch as it is: 5 % of Beta(0.5, 0.5) or so.
    assert 0.26 < is_cutmix.mean() < 0.3 + tolerance
    neither = ~is_mixup & ~is_cutmix
    assert (mixes.label_weight[neither] == 1).all()


def test_mixup_shares_follow_the_beta_distribution(mixes):
    share = mixes.label_weight[mixes.pixel_weight < 1]
    np.testing.assert_array_equal(share, mixes.pixel_weight[mixes.pixel_weight < 1])
    # Beta(0.5, 0.5): mean 1/2, variance 1/8.
    assert abs(share.mean() - 0.5) < 0.025
    assert abs(share.var() - 0.125) < 0.01


def test_cutmix_label_weight_is_the_area_outside_the_box(mixes):
    row0, column0, row1, column1 = mixes.box.T
    area = (row1 - row0) * (column1 - column0)
    cut = area > 0
    expected = 1 - area[cut] / SIZE**2
    np.testing.assert_allclose(mixes.label_weight[cut], expected, rtol=1e-6)


def test_every_image_is_a_partner_once(mixes):
    np.testing.assert_array_equal(
        np.sort(mixes.partner, 1)[:50], np.tile(range(4), (50, 1))
    )


def test_unmixed_batches_are_unchanged_bit_for_bit():
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    none = augment.Mix(
        jnp.array([1, 0, 3, 2]), jnp.zeros(4, jnp.int32), jnp.ones(()), 1
    )
    chex.assert_trees_all_equal(augment.mix(x, x[none.partner], none), x)


def test_only_configured_transforms_are_drawn():
    drawn = Augment(crop_padding_px=2).draw(jax.random.key(0), 4, 8, 8)
    assert set(drawn.images) == {"crop"}
    assert drawn.mix is None


def test_draws_of_a_step_do_not_depend_on_other_transforms():
    key = jax.random.key(0)
    alone = Augment(flip_probability=0.5).draw(key, 16, 8, 8).images["flip"]
    together = Augment(**RECIPE).draw(key, 16, 8, 8).images["flip"]
    chex.assert_trees_all_equal(alone, together)


def test_augmentation_keeps_shape_and_dtype(images):
    recipe = Augment(**RECIPE)
    drawn = recipe.draw(jax.random.key(1), *images.shape[:3])
    chex.assert_trees_all_equal_shapes_and_dtypes(
        recipe.apply(images, drawn.images), images
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"flip_probability": 1.5},
            r"augment.flip_probability=1.5: must be in",
        ),
        ({"crop_padding_px": -1}, r"augment.crop_padding_px=-1: must be at least 0"),
        (
            {"crop_fill": "mirror"},
            r"augment.crop_fill='mirror': choices: zero, reflect, edge",
        ),
        ({"erase_area": (0.3, 0.1)}, r"augment.erase_area"),
        ({"erase_aspect": (1.0,)}, r"augment.erase_aspect"),
        ({"mixup_alpha": 0.0}, r"augment.mixup_alpha=0.0: must be above 0"),
        ({"mixup_probability": 0.7, "cutmix_probability": 0.5}, r"at most 1 together"),
    ],
)
def test_values_out_of_range_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        Augment(**kwargs)
