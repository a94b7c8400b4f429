"""Faster R-CNN against torchvision's values, gradients and detections."""

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
from tiers import full_but

from jaxattn import create_model, from_torch
from jaxattn.models.cost import count_parameters

LOSSES = {
    "objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "classification": "loss_classifier",
    "box": "loss_box_reg",
}


class Golden:
    def __init__(self):
        self.arrays = read("faster_rcnn")
        self.module = make("faster_rcnn", config_of(self.arrays))
        self.x = jnp.asarray(nhwc(self.arrays["input"]))
        self.state = section(self.arrays, "state/")
        self.variables = from_torch(self.module, self.state, self.x)
        prefixes = ["target/0", "target/1"]
        targets = padded_targets(self.arrays, prefixes, [[96, 128]] * 2)
        # torchvision's class 0 is the background.
        labels = jnp.where(targets.valid, targets.labels - 1, 0)
        self.targets = targets.replace(labels=labels)


@pytest.fixture(scope="module")
def golden():
    return Golden()


@pytest.fixture(scope="module")
def training(golden):
    """Outputs, losses and gradients, by one program."""

    def total(params, x):
        outputs = golden.module.apply(
            {**golden.variables, "params": params},
            x,
            targets=golden.targets,
            rngs={"sampling": jax.random.key(0)},
        )
        losses = outputs.losses(golden.targets)
        proposals = outputs.rpn.proposals(*golden.module._counts(trains=True))
        extra = (outputs, losses, proposals)
        return sum(jnp.mean(v) for v in losses.values()), extra

    run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    return jax.device_get(run(golden.variables["params"], golden.x))


@pytest.fixture(scope="module")
def testing(golden):
    more = golden.module.clone(score_threshold=0.5, max_detections=1000)

    @jax.jit
    def run(variables, x):
        outputs = golden.module.apply(variables, x)
        high = more.apply(variables, x).predict()
        return outputs, {"detections": outputs.predict(), "detections_high": high}

    return jax.device_get(run(golden.variables, golden.x))


@pytest.mark.full
def test_first_stage_is_torchvisions(golden, training, testing):
    arrays, outputs = golden.arrays, testing[0]
    rpn = outputs.rpn
    np.testing.assert_array_equal(rpn.pyramid.anchors(), arrays["anchors"])
    for key, values in (("objectness", rpn.logits[..., None]), ("deltas", rpn.deltas)):
        levels = [nhwc(arrays[f"rpn/{key}/{i}"]) for i in range(5)]
        levels = [v.reshape(2, -1, values.shape[-1]) for v in levels]
        assert_close(values, np.concatenate(levels, 1), 1e-5, key)
    trained, _, (proposals, there) = training[0][1]
    for i in (0, 1):
        positive, negative = (mask[i] for mask in trained.rpn.sampled)
        labels = np.where(positive, 1, np.where(negative, 0, -1))
        np.testing.assert_array_equal(labels, arrays[f"rpn/labels/{i}"])
        assert there[i].all()
        assert_close(proposals[i], arrays[f"train/proposals/{i}"], 1e-5)
        assert outputs.heads[0].regions.valid[i].all()
        boxes = outputs.heads[0].regions.boxes[i]
        assert_close(boxes, arrays[f"test/proposals/{i}"], 1e-5)


@pytest.mark.full
def test_second_stage_is_torchvisions(golden, training, testing):
    arrays, (outputs, losses, _) = golden.arrays, training[0][1]
    head = outputs.heads[0]
    labels = np.asarray(head.labels(golden.targets))
    valid = head.regions.valid
    for i in (0, 1):
        own = valid[i]
        assert_close(head.regions.boxes[i, own], arrays[f"train/roi_boxes/{i}"], 1e-5)
        ours = (labels[i, own] + 1) % 4
        np.testing.assert_array_equal(ours, arrays[f"train/roi_labels/{i}"])
    logits, deltas = (v.reshape(-1, v[0, 0].size) for v in (head.logits, head.deltas))
    own = valid.reshape(-1)
    assert_close(logits[own], arrays["train/class_logits"], 1e-5)
    assert_close(deltas[own], arrays["train/box_regression"], 1e-5)
    last = testing[0].heads[0]
    assert_close(last.logits.reshape(-1, 4), arrays["test/class_logits"], 1e-5)
    assert_close(last.deltas.reshape(-1, 16), arrays["test/box_regression"], 1e-5)
    for key, name in LOSSES.items():
        assert_close(np.mean(losses[key]), arrays[f"loss/{name}"], 1e-5, key)


@pytest.mark.full
def test_gradients_are_torchvisions(golden, training):
    params, x = training[1]
    expected = section(golden.arrays, "grad/")
    assert_close(x, nhwc(expected.pop("input")), 1e-4)
    first = expected.pop("roi_heads.box_head.fc6.weight[:4]")
    kernel = params["roi_head.bbox_head"]["shared_fcs.0"]["kernel"]
    assert_close(kernel[:, :4].T, first, 1e-4)
    check_gradients(golden, params, expected)


@pytest.mark.full
@pytest.mark.parametrize("key", ["detections", "detections_high"])
def test_detections_are_torchvisions(golden, testing, key):
    check_detections(golden.arrays, testing[1][key], key, first_label=1)


@pytest.mark.full
def test_images_of_several_sizes_are_torchvisions(golden):
    x, sizes, scales = uneven_batch(golden.arrays)

    @jax.jit
    def run(variables, x):
        return golden.module.apply(variables, x, image_sizes=sizes).predict()

    found = jax.device_get(run(golden.variables, x))
    check_detections(golden.arrays, found, "uneven/detections", scales, first_label=1)


@pytest.mark.full
def test_losses_are_mmdetections(golden, training):
    expected, (outputs, _, _) = read("mm_variants"), training[0][1]
    rpn = outputs.rpn.replace(is_mm=True)
    keys = jax.random.split(jax.random.key(0), 2)
    rpn = jax.jit(lambda: rpn.assigned(golden.targets, keys, 100_000))()
    for i in (0, 1):
        np.testing.assert_array_equal(rpn.matched[i], expected[f"rpn/matched/{i}"])
    losses = rpn.losses(golden.targets)
    assert_close(jnp.mean(losses["objectness"]), expected["rpn/loss_cls"], 1e-5)
    assert_close(jnp.mean(losses["rpn_box"]), expected["rpn/loss_bbox"], 1e-5)
    head = outputs.heads[0]
    # The arrays have torchvision's background, so that alone the loss is changed.
    head = head.replace(rules=head.rules._replace(beta=0.0))
    box = head.losses(golden.targets)["box"]
    assert_close(jnp.mean(box), expected["roi/loss_bbox"], 1e-5)


COUNTS = [
    ("faster_rcnn", "mm", "batch", 80, 41_753_056),
    ("faster_rcnn", "torchvision", "frozen", 90, 41_755_286),
    ("mask_rcnn", "mm", "batch", 80, 44_396_336),
    ("mask_rcnn", "torchvision", "frozen", 90, 44_401_393),
    ("cascade_rcnn", "mm", "batch", 80, 69_394_766),
]


@pytest.mark.parametrize(
    ("name", "layout", "norm", "num_classes", "count"),
    full_but(COUNTS, COUNTS[3]),
)
def test_parameters_are_as_many_as_published(name, layout, norm, num_classes, count):
    module = create_model(name, num_classes, layout=layout, norm=norm)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    init = functools.partial(module.init, jax.random.key(0), train=False)
    assert count_parameters(jax.eval_shape(init, x)["params"]) == count
