"""RetinaNet and its pyramid against torchvision and MMDetection."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_cases import make
from dense_goldens import assert_close, config_of, nhwc, read, section
from detection_goldens import (
    check_detections,
    check_gradients,
    padded_targets,
    uneven_batch,
)
from flax import traverse_util
from tiers import full_but

from jaxattn import create_model, from_torch
from jaxattn.models.cost import count_parameters
from jaxattn.models.torch_layouts import torchvision_names
from jaxattn.models.torch_weights import torch_name

# The pyramid ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant", full_but(["p6_from_c5", "p6_from_p5", "pool"], "p6_from_c5")
)
def test_pyramid_is_torchvisions(variant):
    arrays = read("fpn")
    module = make("fpn", {**config_of(arrays), "variant": variant})
    maps = [jnp.asarray(nhwc(arrays[f"input/{i}"])) for i in range(3)]
    prefix = "backbone.fpn."
    state = {prefix + k: v for k, v in section(arrays, f"{variant}/state/").items()}
    ours = torchvision_names(state)
    state = {ours[k].removeprefix("neck."): v for k, v in state.items()}
    params = of_names(jax.eval_shape(module.init, jax.random.key(0), maps), state)
    names = ["0", "1", "2", *(["pool"] if variant == "pool" else ["p6", "p7"])]
    cotangents = [jnp.asarray(nhwc(arrays[f"cotangent/{i}"])) for i in range(5)]

    @jax.jit
    def run(maps):
        y, pull = jax.vjp(lambda maps: module.apply(params, maps), maps)
        return y, pull(tuple(cotangents[: len(y)]))[0]

    levels, gradients = run(maps)
    for name, level in zip(names, levels, strict=True):
        assert_close(level, nhwc(arrays[f"{variant}/output/{name}"]), 1e-5, name)
    for i, gradient in enumerate(gradients):
        assert_close(gradient, nhwc(arrays[f"{variant}/grad_input/{i}"]), 1e-5)
    if variant == "p6_from_c5":
        # MMDetection's last level is of the one before without the ReLU.
        last = module.clone(relu=False).apply(params, maps)[-1]
        assert_close(last, nhwc(arrays["mm/p7_without_relu"]), 1e-5)


def of_names(abstract, state):
    """Variables of a state dict of convolutions, by our names."""
    leaves = traverse_util.flatten_dict(abstract)
    found = {path: state[torch_name(path)] for path in leaves}
    return traverse_util.unflatten_dict(
        {k: v.transpose(2, 3, 1, 0) if v.ndim == 4 else v for k, v in found.items()}
    )


# Torchvision's ----------------------------------------------------------------------


class Golden:
    def __init__(self):
        self.arrays = read("retinanet")
        self.module = make("retinanet", config_of(self.arrays))
        self.x = jnp.asarray(nhwc(self.arrays["input"]))
        self.state = section(self.arrays, "state/")
        self.variables = from_torch(self.module, self.state, self.x)


@pytest.fixture(scope="module")
def golden():
    return Golden()


@pytest.fixture(scope="module")
def results(golden):
    """Outputs, losses, gradients and detections, by one program."""
    arrays, module = golden.arrays, golden.module
    targets = padded_targets(arrays, ["target/0", "target/1"], [[96, 128]] * 2)
    second = padded_targets(arrays, ["target/0", "second/target/1"], [[96, 128]] * 2)
    more = module.clone(score_threshold=0.5, max_detections=1000)

    def total(params, x):
        variables = {**golden.variables, "params": params}
        outputs = module.apply(variables, x, targets=targets)
        losses = outputs.losses(targets)
        return sum(jnp.mean(v) for v in losses.values()), (outputs, losses)

    @jax.jit
    def run(params, x):
        grad = jax.value_and_grad(total, (0, 1), has_aux=True)
        (loss, (outputs, losses)), gradients = grad(params, x)
        high = more.apply({**golden.variables, "params": params}, x).predict()
        return {
            "outputs": outputs,
            "losses": {**losses, "total": loss},
            "second": outputs.losses(second),
            "matched": outputs.matched(targets),
            "second_matched": outputs.matched(second),
            "gradients": gradients,
            "detections": outputs.predict(),
            "detections_high": high,
        }

    return jax.device_get(run(golden.variables["params"], golden.x))


@pytest.mark.full
def test_outputs_are_torchvisions(golden, results):
    outputs = results["outputs"]
    assert_close(outputs.logits, golden.arrays["cls_logits"], 1e-5)
    assert_close(outputs.deltas, golden.arrays["bbox_regression"], 1e-5)
    np.testing.assert_array_equal(outputs.pyramid.anchors(), golden.arrays["anchors"])


@pytest.mark.full
def test_losses_are_torchvisions(golden, results):
    arrays = golden.arrays
    for key, name in (("classification", "classification"), ("box", "bbox_regression")):
        assert_close(np.mean(results["losses"][key]), arrays[f"loss/{name}"], 1e-5)
        second = np.mean(results["second"][key])
        assert_close(second, arrays[f"second/loss/{name}"], 1e-5)
    assert_close(results["losses"]["total"], arrays["loss/total"], 1e-5)
    np.testing.assert_array_equal(results["matched"][0], arrays["matched_idxs/0"])
    second = results["second_matched"][1]
    np.testing.assert_array_equal(second, arrays["second/matched_idxs/1"])


@pytest.mark.full
def test_gradients_are_torchvisions(golden, results):
    params, x = results["gradients"]
    expected = section(golden.arrays, "grad/")
    assert_close(x, nhwc(expected.pop("input")), 1e-4)
    check_gradients(golden, params, expected)


@pytest.mark.full
@pytest.mark.parametrize("key", ["detections", "detections_high"])
def test_detections_are_torchvisions(golden, results, key):
    check_detections(golden.arrays, results[key], key)


@pytest.mark.full
def test_images_of_several_sizes_are_torchvisions(golden):
    arrays = golden.arrays
    x, targets, scales = uneven_batch(arrays)
    assert_close(x[..., 0], arrays["uneven/batched_channel0"], 1e-5)

    @jax.jit
    def run(variables, x):
        outputs = golden.module.apply(variables, x, targets=targets)
        return outputs.predict(), outputs.losses(targets)

    found, losses = jax.device_get(run(golden.variables, x))
    check_detections(arrays, found, "uneven/detections", scales)
    for key, name in (("classification", "classification"), ("box", "bbox_regression")):
        assert_close(np.mean(losses[key]), arrays[f"uneven/loss/{name}"], 1e-5)


# MMDetection's ----------------------------------------------------------------------


@pytest.mark.full
def test_losses_are_mmdetections(golden, results):
    arrays, expected = golden.arrays, read("mm_variants")
    prefixes = ["target/0", "second/target/1"]
    targets = padded_targets(arrays, prefixes, [[96, 128]] * 2)
    outputs = results["outputs"]
    outputs = outputs.replace(settings=outputs.settings._replace(is_mm=True))
    matched, losses = jax.jit(lambda o: (o.matched(targets), o.losses(targets)))(
        outputs
    )
    for i in (0, 1):
        # The file leaves no anchor out, for it has torchvision's.
        np.testing.assert_array_equal(matched[i], expected[f"retina/matched/{i}"])
    assert_close(jnp.mean(losses["classification"]), expected["retina/loss_cls"], 1e-5)
    assert_close(jnp.mean(losses["box"]), expected["retina/loss_bbox"], 1e-5)


def test_anchors_are_mmdetections():
    expected = read("mm_variants")
    module = small("mm")
    x = jnp.zeros((1, 128, 128, 3))
    shapes = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x)[0])
    for i, cell in enumerate(shapes.pyramid.cells):
        wanted = expected[f"base_anchors/retina/stride{8 * 2**i}"]
        assert_close(np.float32(cell), wanted, 1e-6)
    assert shapes.pyramid.strides == tuple((8 * 2**i,) * 2 for i in range(5))


# Ours -------------------------------------------------------------------------------


def small(layout="mm", **kwargs):
    kwargs = {"backbone": "resnet10", "fpn_features": 8, "num_classes": 3} | kwargs
    return create_model("retinanet", layout=layout, **kwargs)


@pytest.mark.parametrize(
    ("layout", "norm", "num_classes", "count"),
    [
        ("mm", "batch", 80, 37_968_692),
        ("torchvision", "frozen", 91, 34_014_999),
        ("torchvision", "batch", 91, 34_068_119),
    ],
)
def test_parameters_are_as_many_as_published(layout, norm, num_classes, count):
    module = create_model("retinanet", num_classes, layout=layout, norm=norm)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    init = functools.partial(module.init, jax.random.key(0), train=False)
    assert count_parameters(jax.eval_shape(init, x)["params"]) == count
