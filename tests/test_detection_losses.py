"""Losses of detectors against torchvision's values and gradients."""

import functools

import jax
import jax.numpy as jnp
import pytest
from dense_goldens import assert_close, read

from jaxattn.ops import detection_losses as losses


def computed(loss, x, target, cotangent=None):
    """Values and gradients, by one program."""

    @jax.jit
    def run(x):
        y, pull = jax.vjp(lambda x: loss(x, target), x)
        return y, pull(jnp.ones_like(y) if cotangent is None else cotangent)[0]

    return run(x)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2), (-1, 2), (0.5, 1.5)])
def test_focal_loss_is_torchvisions(alpha, gamma):
    arrays = read("ops_losses")
    loss = functools.partial(losses.sigmoid_focal_loss, alpha=alpha, gamma=gamma)
    y, gradient = computed(loss, arrays["focal/logits"], arrays["focal/targets"])
    prefix = f"focal/a{alpha}_g{gamma}"
    assert_close(y, arrays[f"{prefix}/loss"], 1e-6)
    assert_close(gradient, arrays[f"{prefix}/grad"], 1e-6)


@pytest.mark.parametrize("beta", [1 / 9, 1.0, 0.0])
def test_smooth_l1_loss_is_torchvisions(beta):
    arrays = read("ops_losses")
    loss = functools.partial(losses.smooth_l1_loss, beta=beta)
    y, gradient = computed(loss, arrays["smooth_l1/pred"], arrays["smooth_l1/target"])
    prefix = f"smooth_l1/beta{beta:.3f}"
    assert_close(y, arrays[f"{prefix}/loss"], 1e-6)
    assert_close(gradient, arrays[f"{prefix}/grad"], 1e-6)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("giou_loss", losses.giou_loss),
        ("giou_loss_mmdet", functools.partial(losses.giou_loss, clamps=True)),
        ("diou_loss", losses.diou_loss),
        ("ciou_loss", losses.ciou_loss),
    ],
)
def test_iou_losses_are_their_authors(name, loss):
    arrays = read("ops_boxes")
    pairs = arrays["giou_loss/pred"], arrays["giou_loss/target"]
    y, gradient = computed(loss, *pairs, arrays["giou_loss/cotangent"])
    assert_close(y, arrays[f"{name}/loss"], 1e-6)
    assert_close(gradient, arrays[f"{name}/grad_pred"], 1e-6)
