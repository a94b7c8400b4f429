"""What holds for every detector: shapes, dtypes, padding, what learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from tiers import full_but

from jaxattn import create_model
from jaxattn.errors import UserError
from jaxattn.models.detection import BoxTargets
from jaxattn.models.torch_layouts import torchvision_names

NAMES = ["retinanet", "faster_rcnn", "mask_rcnn", "cascade_rcnn"]
_TWO_STAGE = {
    "hidden": 16,
    "proposals_before": (40, 40),
    "proposals_after": (24, 24),
    "rpn_samples": 16,
    "roi_samples": 16,
}
SMALL = dict.fromkeys(NAMES[1:], _TWO_STAGE)
SMALL["retinanet"] = {"num_candidates": 50}


def small(name, **kwargs):
    return create_model(
        name,
        3,
        **{
            "backbone": "resnet10",
            "widths": (8, 16, 32, 64),
            "fpn_features": 8,
            "max_detections": 10,
            "anchor_base": 2.0,
            "score_threshold": 0.0,
            **SMALL[name],
            **kwargs,
        },
    )


def targets_of(N=2, G=3, size=(64, 96), has_masks=True):
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 30, (N, G, 2))
    boxes = np.concatenate([low, low + rng.uniform(10, 30, (N, G, 2))], -1)
    valid = np.ones((N, G), bool)
    valid[1:] = False  # nothing to see
    masks = rng.integers(0, 2, (N, G, *size)).astype(np.uint8)
    return BoxTargets(
        jnp.asarray(boxes, jnp.float32),
        jnp.asarray(rng.integers(0, 3, (N, G))),
        jnp.asarray(valid),
        jnp.array([size] * N, jnp.float32),
        jnp.asarray(masks) if has_masks else None,
    )


@functools.cache
def built(name, **kwargs):
    module = small(name, **kwargs)
    x = jax.random.normal(jax.random.key(0), (2, 64, 96, 3))
    init = jax.jit(functools.partial(module.init, train=False))
    return module, init(jax.random.key(1), x), x


def losses_of(module, variables, x, targets, train=False):
    """Losses of a batch, and statistics after it."""
    outputs, updated = module.apply(
        variables,
        x,
        train=train,
        targets=targets,
        rngs={"sampling": jax.random.key(2), "dropout": jax.random.key(3)},
        mutable=["batch_stats"],
    )
    return outputs.losses(targets), updated


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name):
    module, variables, x = built(name)
    targets = targets_of()

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params):
        given = {**variables, "params": params}
        losses, _ = losses_of(module, given, x, targets, train=True)
        return sum(jnp.mean(v) for v in losses.values()), losses

    (total, losses), gradients = run(variables["params"])
    assert jnp.isfinite(total)
    for key, loss in losses.items():
        assert loss.shape == (2,), key
        assert jnp.all(loss >= 0), key
        assert loss[0] > 0, key
    leaves = traverse_util.flatten_dict(gradients, sep="/")
    dead = [k for k, v in leaves.items() if not jnp.all(jnp.isfinite(v)) or not v.any()]
    assert dead == []


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    module, variables, x = built(name)
    targets = targets_of()
    pad = lambda v: jnp.pad(v, [(0, 0), (0, 2)] + [(0, 0)] * (v.ndim - 2))  # noqa: E731
    keys = ("boxes", "labels", "valid", "masks")
    padded = targets.replace(**{key: pad(getattr(targets, key)) for key in keys})

    @jax.jit
    def run(variables, targets):
        return losses_of(module, variables, x, targets)[0]

    others = run(variables, padded)
    for key, loss in run(variables, targets).items():
        np.testing.assert_allclose(others[key], loss, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_do_not_see_each_other(name):
    module, variables, x = built(name)
    predict = jax.jit(lambda v, x: module.apply(v, x, train=False).predict())
    both, one = predict(variables, x), predict(variables, x[1:])
    assert both.boxes.shape == (2, 10, 4)
    assert jnp.all(jnp.diff(both.scores) <= 0)
    for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a[1:], b, rtol=1e-4, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_computes_boxes_and_losses_in_float32(name):
    module, variables, x = built(name)
    module = module.clone(dtype=jnp.bfloat16)
    assert module.backbone.dtype == jnp.bfloat16
    targets = targets_of()

    @jax.jit
    def run(variables, x):
        found = module.apply(variables, x, train=False).predict()
        return found, losses_of(module, variables, x, targets)[0]

    found, losses = run(variables, x)
    for key, loss in losses.items():
        assert loss.dtype == jnp.float32
        assert jnp.all(jnp.isfinite(loss)), key
    assert found.boxes.dtype == found.scores.dtype == jnp.float32


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_images_without_boxes_train(name):
    module, variables, x = built(name)
    none = targets_of()
    none = none.replace(valid=jnp.zeros_like(none.valid), boxes=none.boxes * 0)
    empty = targets_of(G=0)
    run = jax.jit(lambda targets: losses_of(module, variables, x, targets)[0])
    for targets in (none, empty):
        for key, loss in run(targets).items():
            assert jnp.all(jnp.isfinite(loss)), key
            is_of_boxes = key.startswith(("rpn_box", "box", "mask"))
            assert not (is_of_boxes and loss.any()), key


@pytest.mark.full
def test_a_frozen_backbone_stays():
    module, variables, x = built("retinanet", norm="frozen", frozen_stages=2)
    norms = variables["batch_stats"]["backbone"]["bn1"]
    assert norms.keys() == {"scale", "bias", "mean", "var"}
    assert "bn1" not in variables["params"]["backbone"]
    targets = targets_of()

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(params):
        given = {**variables, "params": params}
        losses, updated = losses_of(module, given, x, targets, train=True)
        return sum(jnp.mean(v) for v in losses.values()), updated

    gradients, updated = run(variables["params"])
    own = gradients["backbone"]
    assert not any(
        v.any() for k in ("conv1", "layer2.0") for v in jax.tree.leaves(own[k])
    )
    assert own["layer3.0"]["conv1"]["kernel"].any()
    jax.tree.map(
        np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"]
    )


@pytest.mark.full
def test_running_norms_learn_scale_and_bias_alone():
    module, variables, x = built(
        "retinanet", norm="running", widths=(16,) * 4, attention="cbam"
    )
    assert "bn1" in variables["params"]["backbone"]
    _, updated = jax.jit(
        lambda: losses_of(module, variables, x, targets_of(), train=True)
    )()
    before, after = (
        traverse_util.flatten_dict(v["batch_stats"], sep="/")
        for v in (variables, updated)
    )
    moved = {k for k in before if not np.array_equal(before[k], after[k])}
    # What is an attention module's own is as ever.
    assert moved == {k for k in before if "attn" in k}


@pytest.mark.parametrize("attention", full_but(["scsa", "eca"], "scsa"))
def test_any_backbone_and_attention_make_a_detector(attention):
    module = create_model(
        "faster_rcnn",
        3,
        backbone="mobilenet_v2",
        attention=attention,
        fpn_features=64,
        roi_samples=32,
    )
    x = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    run = lambda x: module.init_with_output(jax.random.key(0), x)[0].predict()  # noqa: E731
    assert jax.eval_shape(run, x).boxes.shape == (1, 100, 4)


def test_a_network_of_one_layout_refuses_the_other():
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    for name, layout in (("cascade_rcnn", "torchvision"), ("retinanet", "detectron")):
        module = small(name, layout=layout)
        with pytest.raises(UserError, match=f"layout='{layout}'"):
            jax.eval_shape(module.init, jax.random.key(0), x)
    module = small("mask_rcnn")
    with pytest.raises(UserError, match="masks"):
        jax.eval_shape(
            functools.partial(module.init, targets=targets_of(1, has_masks=False)),
            {"params": jax.random.key(0), "sampling": jax.random.key(0)},
            x,
        )


def test_frozen_stages_are_a_count():
    with pytest.raises(UserError, match=r"model.frozen_stages=-1: must be an integer"):
        small("retinanet", frozen_stages=-1)


def test_old_files_of_torchvision_have_other_names():
    names = {
        "backbone.body.layer1.0.conv1.weight": "backbone.layer1.0.conv1.weight",
        "backbone.fpn.inner_blocks.0.weight": "neck.lateral_convs.0.conv.weight",
        "head.classification_head.conv.6.bias": "bbox_head.cls_convs.3.conv.bias",
        "head.regression_head.conv.3.0.bias": "bbox_head.reg_convs.3.conv.bias",
        "rpn.head.conv.weight": "rpn_head.rpn_conv.weight",
        "roi_heads.mask_head.mask_fcn2.bias": "roi_head.mask_head.convs.1.conv.bias",
    }
    assert torchvision_names(names) == names
