"""The mask branch against torchvision's values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_cases import make
from dense_goldens import assert_close, config_of, nhwc, read, section

from jaxattn.models.detection import BoxTargets
from jaxattn.models.heads.mask import MaskOutputs, of_class, paste_masks
from jaxattn.models.heads.roi import Regions, pool_regions
from jaxattn.models.torch_layouts import torchvision_names

_PREFIX = "roi_head.mask_head."


def by_module(state):
    """Parameters of the branch, from a state dict or gradients by torch's names."""
    # A pyramid tells that it is a detector's.
    ours = torchvision_names([*state, "backbone.fpn.inner_blocks.0.weight"])
    params = {}
    for name, value in state.items():
        path, _, leaf = ours[name].removeprefix(_PREFIX).rpartition(".")
        if leaf == "weight":
            leaf, value = "kernel", value.transpose(2, 3, 1, 0)
        params.setdefault(path, {})[leaf] = value
    return params


@pytest.fixture(scope="module")
def golden():
    arrays = read("mask_head")
    stack = lambda key: np.stack([arrays[key.format(i)] for i in (0, 1)])  # noqa: E731
    labels = stack("target/{}/labels")
    targets = BoxTargets(
        boxes=jnp.asarray(stack("target/{}/boxes")),
        labels=jnp.asarray(labels),
        valid=jnp.ones(labels.shape, bool),
        image_sizes=jnp.array([[96.0, 128.0]] * 2),
        masks=jnp.asarray(stack("target/{}/masks")),
    )
    matched = jnp.asarray(stack("matched_idxs/{}"))
    boxes = jnp.asarray(stack("proposals/{}"))
    return arrays, targets, Regions(boxes, jnp.ones(matched.shape, bool), matched)


@pytest.fixture(scope="module")
def results(golden):
    arrays, targets, regions = golden
    config = config_of(arrays)
    module = make("mask_head", config)
    maps = [jnp.asarray(nhwc(arrays[f"feature/{i}"])) for i in range(4)]
    labels = jnp.take_along_axis(targets.labels, regions.matched, 1)

    def total(params, maps):
        pooled = pool_regions(
            maps,
            regions.boxes,
            strides=(4, 8, 16, 32),
            size=config["roi"],
            finest_scale=config["canonical_scale"] / 4,
            is_mm=False,
        )
        logits = module.apply({"params": params}, pooled)
        own = of_class(logits, labels.reshape(-1)).reshape(2, -1, 28, 28)
        outputs = MaskOutputs(regions, own, is_mm=False, axis_name=None)
        loss = jnp.mean(outputs.losses(targets)["mask"])
        return loss, (logits, outputs.targets(targets), jax.nn.sigmoid(own))

    run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    return jax.device_get(run(by_module(section(arrays, "state/")), maps))


@pytest.mark.full
def test_mask_branch_is_torchvisions(golden, results):
    arrays = golden[0]
    loss, (logits, targets, probabilities) = results[0]
    assert_close(logits, nhwc(arrays["mask_logits"]), 1e-5)
    for i in (0, 1):
        assert_close(targets[i], arrays[f"mask_targets/{i}"], 2e-5)
    assert_close(loss, arrays["loss/loss_mask"], 1e-5)
    assert_close(probabilities.reshape(-1, 28, 28), arrays["probabilities"], 1e-5)


@pytest.mark.full
def test_gradients_are_torchvisions(golden, results):
    arrays = golden[0]
    params, maps = results[1]
    for i, gradient in enumerate(maps):
        expected = nhwc(arrays[f"grad/feature/{i}"])
        atol = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=atol)
    given = section(arrays, "grad/")
    expected = by_module({k: v for k, v in given.items() if k.startswith("roi")})
    assert params.keys() == expected.keys()
    for path, leaves in expected.items():
        for leaf, value in leaves.items():
            atol = 1e-4 * np.abs(value).max()
            np.testing.assert_allclose(params[path][leaf], value, rtol=0, atol=atol)


@pytest.mark.full
def test_masks_are_pasted_as_torchvision_does(golden):
    arrays, _, regions = golden
    masks = jnp.asarray(arrays["probabilities"][:6])
    pasted = paste_masks(masks, regions.boxes[0], (96, 128))
    assert_close(pasted, arrays["pasted/0"], 1e-5)
