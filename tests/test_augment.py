"""Transforms on given parameters, and the distribution of what is drawn."""

import colorsys
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from jaxattn import UserError
from jaxattn.data.augment import (
    IGNORED,
    TRANSFORMS,
    Augment,
    ColorJitter,
    Crop,
    Erase,
    Flip,
    Jitter,
    Mix,
    MixupCutMix,
    Perspective,
    Rotation,
    mix,
    normalize,
)

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
COLOUR = {
    **RECIPE,
    "rotation_degrees": 15.0,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "photometric_probability": 0.5,
    "perspective_probability": 0.5,
    "perspective_distortion": 0.3,
}

STAYING = (
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "photometric_probability",
    "erase_probability",
)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(1, 256, (6, 12, 10, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("fill", "mode"), [("zero", "constant"), ("reflect", "reflect"), ("edge", "edge")]
)
def test_crop_is_numpys_pad_and_slice(images, fill, mode):
    corners = jnp.array([[0, 0], [6, 6], [3, 3], [0, 6], [5, 1], [2, 4]])
    cropped = Crop(3, fill).apply(images, corners)
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), mode=mode)
    for i, (row, column) in enumerate(np.asarray(corners)):
        expected = padded[i, row : row + 12, column : column + 10]
        np.testing.assert_array_equal(cropped[i], expected)
    assert cropped.dtype == jnp.uint8


def test_label_maps_are_cropped_and_mirrored_as_their_images(images):
    recipe = Augment(flip_probability=0.5, crop_padding_px=3)
    assert recipe.targets == {"image", "mask"}
    drawn = recipe.draw(jax.random.key(3), *images.shape[:3]).images
    moved = recipe.apply(images, drawn)[..., 0]
    masks = recipe.apply_to_masks(images[..., 0], drawn)
    # No pixel of the images is 0, so that where there is one it is padding.
    np.testing.assert_array_equal(masks, jnp.where(moved == 0, IGNORED, moved))
    assert (moved == 0).any()
    assert drawn["flip"].any()


def test_label_maps_are_rotated_as_their_images(images):
    rotation, degrees = Rotation(90.0), jnp.array([0.0, 10, -40, 90, 5, -90])
    moved = rotation.apply(images, degrees)[..., 0]
    masks = rotation.apply_to_masks(images[..., 0], degrees)
    np.testing.assert_array_equal(masks, jnp.where(moved == 0, IGNORED, moved))
    assert (moved == 0).any()


def test_label_maps_change_perspective_as_their_images():
    """An image of two colours is one of these, but where it interpolates."""
    image = jnp.full((4, 24, 32), 50, jnp.uint8).at[:, 5:17, 9:21].set(200)
    perspective = Perspective(1.0, 0.6)
    moves = perspective.draw(jax.random.key(0), *image.shape)
    moved = perspective.apply(image[..., None], moves)[..., 0]
    masks = np.asarray(perspective.apply_to_masks(image, moves))
    assert masks.dtype == np.uint8
    np.testing.assert_array_equal(masks == IGNORED, moved == 0)
    expected = np.select([moved == 0, moved > 125], [IGNORED, 200], 50)
    clear = np.abs(moved - 125) > 40  # else, at a corner too, either may be nearest
    np.testing.assert_array_equal(masks[clear], expected[clear])
    assert clear.mean() > 0.9


def test_transforms_that_move_nothing_leave_label_maps(images):
    recipe = Augment(**{k: v for k, v in COLOUR.items() if k in STAYING})
    assert recipe.targets == {"image", "mask", "boxes"}
    drawn = recipe.draw(jax.random.key(3), *images.shape[:3]).images
    masks = images[..., 0]
    chex.assert_trees_all_equal(recipe.apply_to_masks(masks, drawn), masks)


@pytest.mark.parametrize(
    ("key", "targets"),
    [
        ("flip_probability", {"image", "mask", "boxes"}),
        ("rotation_degrees", {"image", "mask"}),
        ("perspective_probability", {"image", "mask"}),
        ("mixup_probability", {"image"}),
    ],
)
def test_what_a_recipe_leaves_right_is_what_all_transforms_do(key, targets):
    staying = {k: COLOUR[k] for k in STAYING}
    assert Augment(**staying, **{key: COLOUR[key]}).targets == targets


def test_flip_mirrors_only_the_chosen(images):
    flipped = Flip(0.5).apply(images, jnp.arange(6) % 2 == 0)
    np.testing.assert_array_equal(flipped[0], images[0, :, ::-1])
    np.testing.assert_array_equal(flipped[1], images[1])


def test_erase_makes_the_rectangle_black(images):
    boxes = jnp.tile(jnp.array([[2, 3, 5, 9]]), (6, 1)).at[1].set(0)
    erased = np.asarray(Erase(0.5, (0.1, 0.2), (1, 1)).apply(images, boxes))
    assert (erased[0, 2:5, 3:9] == 0).all()
    assert (erased[0] == 0).all(-1).sum() == 3 * 6  # no other pixel is 0
    np.testing.assert_array_equal(erased[1], images[1])


def test_normalize_is_torchvisions(images):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (np.asarray(images) / 255 - np.array(mean)) / np.array(std)
    actual = normalize(images, mean=mean, std=std)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(params=["noise", "smooth"])
def pictures(request):
    """Sixteen images of 24 x 32, uint8: independent pixels or slow waves of colour."""
    rng = np.random.default_rng(1)
    if request.param == "noise":
        return rng.integers(0, 256, (16, 24, 32, 3), dtype=np.uint8)
    y, x = np.mgrid[:24, :32][:, None, :, :, None] / 32
    along_x, along_y, phase = rng.uniform(0, 6, (3, 16, 1, 1, 3))
    waves = 127.5 + 127.5 * np.sin(along_x * x + along_y * y + phase)
    return waves.astype(np.uint8)


def by_pillow(images, transform, *parameters):
    """Applies a function of a PIL image and its own parameters to each image."""
    done = [
        np.asarray(transform(Image.fromarray(image), *own))
        for image, *own in zip(np.asarray(images), *parameters, strict=True)
    ]
    return np.stack(done).astype(float)


def pillow_hue(image, turns):
    h, s, v = image.convert("HSV").split()
    shifted = (np.asarray(h, int) + round(255 * float(turns))) % 256
    hsv = Image.merge("HSV", (Image.fromarray(shifted.astype(np.uint8)), s, v))
    return hsv.convert("RGB")


def pillow_operation(image, number, drawn):
    """What torchvision does on a PIL image, for one of `Jitter`'s operations."""
    if number == 3:
        return pillow_hue(image, drawn.hue)
    enhance = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    return enhance[number](image).enhance(float(drawn[number]))


def pillow_jitter(image, *drawn):
    drawn = Jitter(*drawn)
    for number in drawn.order:
        image = pillow_operation(image, number, drawn)
    return image


def pillow_perspective(image, moves):
    """What torchvision does on a PIL image: coefficients from eight equations."""
    x, y = image.width - 1, image.height - 1
    start = np.array([[0, 0], [x, 0], [x, y], [0, y]], float)
    end = start + np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * moves
    rows = []
    for (sx, sy), (ex, ey) in zip(start, end, strict=True):
        rows.append([ex, ey, 1, 0, 0, 0, -sx * ex, -sx * ey])
        rows.append([0, 0, 0, ex, ey, 1, -sy * ex, -sy * ey])
    coefficients = np.linalg.lstsq(np.array(rows), start.ravel())[0]
    return image.transform(
        image.size,
        Image.Transform.PERSPECTIVE,
        coefficients.tolist(),
        Image.Resampling.BILINEAR,
    )


def jitter(**strengths):
    none = dict.fromkeys(["brightness", "contrast", "saturation", "hue"], 0.0)
    return ColorJitter(**(none | strengths))


def drawn_jitter(n, **strengths):
    return jitter(**strengths).draw(jax.random.key(2), n, 24, 32)


def test_rotation_is_pillows(pictures):
    degrees = np.linspace(-180, 170, 16)
    actual = Rotation(15.0).apply(jnp.asarray(pictures), jnp.asarray(degrees))
    expected = by_pillow(pictures, lambda image, t: image.rotate(t), degrees)
    # Pillow's fixed-point coordinates may round to the neighbour at a pixel's border.
    assert (np.asarray(actual) == expected).all(-1).mean() >= 0.998
    assert actual.dtype == jnp.uint8


@pytest.mark.parametrize(
    ("number", "operation"), [(0, "brightness"), (1, "contrast"), (2, "saturation")]
)
def test_an_operation_of_jitter_is_pillows(pictures, number, operation):
    drawn = drawn_jitter(16, **{operation: 0.4})
    actual = jitter().apply(jnp.asarray(pictures), drawn)
    expected = by_pillow(
        pictures,
        lambda image, *own: pillow_operation(image, number, Jitter(*own)),
        *map(np.asarray, drawn),
    )
    # Pillow cuts to whole levels, and rounds the grey that it blends with: by half a
    # level, of which it takes at most 40 %.
    assert np.abs(actual - 0.5 - expected).max() <= 0.5 + 0.4 * 0.5 + 1e-3


def test_hue_is_pillows(pictures):
    drawn = drawn_jitter(16, hue=0.5)
    actual = jitter().apply(jnp.asarray(pictures), drawn)
    expected = by_pillow(pictures, pillow_hue, np.asarray(drawn.hue))
    error = np.abs(actual - expected)
    # Of 8 bits, Pillow's hue is off by up to a step of 1/255 turn, and by another where
    # it wraps at 256: 6 levels each at full chroma. Saturation and the way back add 1.
    assert error.max() <= 13
    assert error.mean() < 1


def test_jitter_is_pillows_in_the_drawn_order(pictures):
    drawn = drawn_jitter(16, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    actual = jitter().apply(jnp.asarray(pictures), drawn)
    expected = by_pillow(pictures, pillow_jitter, *map(np.asarray, drawn))
    error = np.abs(actual - expected)
    # Each of three operations cuts half a level on average, and may stretch the error
    # of the hue before it. Two operations swapped would be off by 37 levels or more.
    assert error.max() <= 20
    assert error.mean() < 1.6


def test_jitter_is_its_operations_one_after_another(pictures):
    drawn = drawn_jitter(16, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    neutral = (1.0, 1.0, 1.0, 0.0)
    one_by_one = jnp.asarray(pictures)
    for number in drawn.order.T:
        alone = [
            jnp.where(number == i, drawn[i], neutral[i]) for i in range(len(neutral))
        ]
        one_by_one = jitter().apply(one_by_one, Jitter(*alone, drawn.order))
    at_once = jitter().apply(jnp.asarray(pictures), drawn)
    np.testing.assert_allclose(at_once, one_by_one, rtol=0, atol=1e-2)


def distorted(pixel, brightness, contrast, saturation, hue, contrast_first):
    """mmsegmentation's PhotoMetricDistortion of one pixel, without rounding."""
    x = np.clip(pixel + brightness, 0, 255)
    if contrast_first:
        x = np.clip(contrast * x, 0, 255)
    h, s, v = colorsys.rgb_to_hsv(*x / 255)
    x = 255 * np.array(colorsys.hsv_to_rgb((h + hue) % 1, min(s * saturation, 1), v))
    return x if contrast_first else np.clip(contrast * x, 0, 255)


def test_photometric_distortion_is_mmsegmentations(pictures):
    distortion = Augment(photometric_probability=0.5).transforms[0]
    drawn = distortion.draw(jax.random.key(0), 16, 24, 32)
    actual = distortion.apply(jnp.asarray(pictures), drawn)[:, ::8, ::8]
    each = zip(pictures[:, ::8, ::8], *map(np.asarray, drawn), strict=True)
    expected = [np.apply_along_axis(distorted, -1, *own) for own in each]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-2)
    # Half of it changes, and of that half the contrast comes first.
    changed = [drawn.brightness != 0, drawn.contrast != 1, drawn.hue != 0]
    assert all(0 < value.sum() < 16 for value in [*changed, drawn.contrast_first])


def test_photometric_distortion_has_mmsegmentations_ranges():
    distortion = Augment(photometric_probability=0.5).transforms[0]
    drawn = distortion.draw(jax.random.key(0), 4000, 1, 1)
    for values, neutral, most in (
        (drawn.brightness, 0, 32),
        (drawn.contrast, 1, 0.5),
        (drawn.saturation, 1, 0.5),
        (drawn.hue, 0, 0.1),
    ):
        change = np.abs(np.asarray(values) - neutral)
        assert 0.95 * most < change.max() <= most + 1e-6
        assert abs((change > 0).mean() - 0.5) < 0.05


def test_perspective_is_pillows(pictures):
    moves = Perspective(1.0, 0.6).draw(jax.random.key(0), 16, 24, 32)
    actual = Perspective(1.0, 0.6).apply(jnp.asarray(pictures), moves)
    expected = by_pillow(pictures, pillow_perspective, np.asarray(moves))
    # Pillow cuts to whole levels. Coordinates that are exactly the canvas's edge fall
    # to either side, there as here.
    error = np.abs(actual - 0.5 - expected).max(-1)
    assert (error <= 0.5 + 0.01).mean() >= 0.998
    assert actual.dtype == jnp.float32


def test_jitter_refuses_images_without_colours(images):
    with pytest.raises(ValueError, match="need images of 3 channels, not 1"):
        jitter().apply(images[..., :1], drawn_jitter(6))


def test_transforms_drawn_as_nothing_leave_images_alone(images):
    rotated = Rotation(15.0).apply(images, jnp.zeros(6))
    chex.assert_trees_all_equal(rotated, images)
    moved = Perspective(1.0, 0.6).apply(images, jnp.zeros((6, 4, 2), jnp.int32))
    np.testing.assert_allclose(moved, images, rtol=0, atol=1e-2)
    np.testing.assert_allclose(
        jitter().apply(images, drawn_jitter(6)), images, rtol=0, atol=1e-3
    )


def test_crop_corners_are_uniform():
    corners = np.asarray(Crop(4, "zero").draw(jax.random.key(0), 20_000, SIZE, SIZE))
    for axis in (0, 1):
        counts = np.bincount(corners[:, axis], minlength=9)
        assert len(counts) == 9
        # 2,222 expected, standard deviation 44.
        assert np.abs(counts - 20_000 / 9).max() < 5 * 44


def test_erased_rectangles_have_the_specified_distribution():
    n = 20_000
    boxes = np.asarray(
        Erase(0.5, (0.04, 0.2), (0.5, 2.0)).draw(jax.random.key(0), n, SIZE, SIZE)
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
    boxes = Erase(1.0, (0.99, 1.0), (1, 1)).draw(jax.random.key(0), 64, 8, 8)
    chex.assert_trees_all_equal(boxes, jnp.zeros((64, 4), jnp.int32))


def test_angles_are_uniform():
    n = 20_000
    degrees = np.asarray(Rotation(15.0).draw(jax.random.key(0), n, SIZE, SIZE))
    assert np.abs(degrees).max() <= 15
    counts, _ = np.histogram(degrees, 10, (-15, 15))
    # 2,000 expected, standard deviation 42.
    assert np.abs(counts - n / 10).max() < 5 * 42


@pytest.fixture(scope="module")
def jitters():
    drawn = ColorJitter(0.4, 0.3, 0.2, 0.1).draw(jax.random.key(0), 24_000, SIZE, SIZE)
    return jax.tree.map(np.asarray, drawn)


@pytest.mark.parametrize(
    ("name", "strength"), [("brightness", 0.4), ("contrast", 0.3), ("saturation", 0.2)]
)
def test_factors_are_uniform_about_one(jitters, name, strength):
    share = (getattr(jitters, name) - 1) / strength
    assert np.abs(share).max() <= 1 + 1e-6
    counts, _ = np.histogram(share, 10, (-1, 1))
    # 2,400 expected, standard deviation 46.
    assert np.abs(counts - 2400).max() < 5 * 46


def test_hue_shifts_are_uniform_over_the_steps_of_8_bits(jitters):
    steps = 255 * jitters.hue
    np.testing.assert_allclose(steps, np.round(steps), rtol=0, atol=1e-4)
    counts = np.bincount(np.round(steps).astype(int) + 25, minlength=51)
    assert len(counts) == 51
    # Cut toward zero: 0 stands for two steps, the last (25 to 25.5) for half of one.
    expected = np.array([0.5] + [1] * 24 + [2] + [1] * 24 + [0.5]) / 51 * 24_000
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_orders_are_uniform_over_all_permutations(jitters):
    orders, counts = np.unique(jitters.order, axis=0, return_counts=True)
    np.testing.assert_array_equal(orders, list(itertools.permutations(range(4))))
    # 1,000 expected, standard deviation 31.
    assert np.abs(counts - 1000).max() < 5 * 31


def test_what_jitter_draws_is_independent(jitters):
    drawn = np.stack([*jitters[:4], *jitters.order.T[:3]])
    correlation = np.corrcoef(drawn)[:4]
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 5 / np.sqrt(24_000)


def test_corners_move_in_the_specified_share_of_images():
    n = 20_000
    moves = np.asarray(Perspective(0.3, 0.1).draw(jax.random.key(0), n, SIZE, SIZE))
    # The largest move is int(0.1 * 16) = 1: all eight are 0 in one image of 256.
    assert set(np.unique(moves)) == {0, 1}
    share = 0.3 * 255 / 256
    changed = (moves > 0).any((1, 2))
    assert abs(changed.mean() - share) < 5 * np.sqrt(share * (1 - share) / n)


def test_moves_of_corners_are_uniform_along_both_axes():
    n = 20_000
    moves = np.asarray(Perspective(1.0, 0.25).draw(jax.random.key(0), n, 24, 40))
    for axis, most in ((0, 5), (1, 3)):
        for corner in range(4):
            counts = np.bincount(moves[:, corner, axis], minlength=most + 1)
            assert len(counts) == most + 1
            expected = n / (most + 1)
            assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.fixture(scope="module")
def mixes():
    mixing = MixupCutMix(
        mixup_probability=0.3,
        mixup_alpha=0.5,
        cutmix_probability=0.3,
        cutmix_alpha=0.5,
    )
    draw = functools.partial(mixing.draw, n=4, height=SIZE, width=SIZE)
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
    none = Mix(jnp.array([1, 0, 3, 2]), jnp.zeros(4, jnp.int32), jnp.ones(()), 1)
    chex.assert_trees_all_equal(mix(x, x[none.partner], none), x)


def test_only_configured_transforms_are_drawn():
    drawn = Augment(crop_padding_px=2).draw(jax.random.key(0), 4, 8, 8)
    assert set(drawn.images) == {"crop"}
    assert drawn.mix is None


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("flip", ["flip_probability"]),
        ("crop", ["crop_padding_px"]),
        ("rotation", ["rotation_degrees"]),
        ("jitter", ["brightness", "contrast", "saturation", "hue"]),
        ("photometric", ["photometric_probability"]),
        ("perspective", ["perspective_probability", "perspective_distortion"]),
        ("erase", ["erase_probability", "erase_area", "erase_aspect"]),
    ],
)
def test_draws_of_a_step_do_not_depend_on_other_transforms(name, settings):
    key = jax.random.key(0)
    only = Augment(**{setting: COLOUR[setting] for setting in settings})
    alone = only.draw(key, 16, 8, 8).images
    assert set(alone) == {name}
    together = Augment(**COLOUR).draw(key, 16, 8, 8).images
    chex.assert_trees_all_equal(alone[name], together[name])


def test_transforms_draw_from_different_keys():
    key = jax.random.key(0)
    kinds = (*TRANSFORMS, MixupCutMix)
    keys = [jax.random.fold_in(key, kind.key) for kind in kinds]
    assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == len(keys)


def test_all_that_is_drawn_per_image_has_the_images_first():
    drawn = jax.eval_shape(lambda: Augment(**COLOUR).draw(jax.random.key(0), 5, 8, 8))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(drawn.images)} == {5}


@pytest.mark.full
def test_augmentation_is_the_same_when_compiled(images):
    recipe = Augment(**COLOUR)
    drawn = recipe.draw(jax.random.key(1), *images.shape[:3]).images
    eager = recipe.apply(images, drawn)
    assert eager.dtype == jnp.float32
    compiled = jax.jit(recipe.apply)(images, drawn)
    # Coordinates at a border fall to either side.
    assert np.isclose(compiled, eager, rtol=0, atol=1e-2).mean() >= 0.99


def test_augmentation_keeps_shape_and_dtype(images):
    recipe = Augment(**RECIPE)

    def augmented(images):
        drawn = recipe.draw(jax.random.key(1), *images.shape[:3])
        return recipe.apply(images, drawn.images)

    result = jax.eval_shape(augmented, images)
    assert (result.shape, result.dtype) == (images.shape, images.dtype)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"flip_probability": 1.5},
            r"augment.flip_probability=1.5: must be in",
        ),
        (
            {"perspective_probability": -0.1},
            r"augment.perspective_probability=-0.1: must be in",
        ),
        (
            {"perspective_distortion": 0.0},
            r"augment.perspective_distortion=0.0: must be in \(0, 1\]",
        ),
        (
            {"rotation_degrees": 200},
            r"augment.rotation_degrees=200: must be in \[0, 180\]",
        ),
        ({"brightness": 1.1}, r"augment.brightness=1.1: must be in \[0, 1\]"),
        ({"contrast": -0.2}, r"augment.contrast=-0.2: must be in \[0, 1\]"),
        ({"saturation": 2}, r"augment.saturation=2: must be in \[0, 1\]"),
        ({"hue": 0.6}, r"augment.hue=0.6: must be in \[0, 0.5\]"),
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
