"""The pictures of a run, and a run without them."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smoke
from tiers import slow_from

import jaxattn
from jaxattn import create_model
from jaxattn.data.source import labelled, spread
from jaxattn.tasks.classification.figures import worst_mistakes
from jaxattn.tasks.classification.metrics import Predictions, predict
from jaxattn.training.evaluate import Evaluator
from jaxattn.training.records import figures, report
from jaxattn.training.run import build


def test_worst_mistakes_are_the_surest_wrong_ones_in_order():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    source = labelled(images, np.array([0, 1, 2, 0, 1], np.int32))
    predictions = Predictions(  # and one more of padding
        label=np.array([1, 1, 0, 2, 0, 2]),
        confidence=np.array([0.5, 0.99, 0.75, 1, 0.25, 0.9]),
        is_wrong=np.array([True, False, True, True, True, False]),
    )
    chosen, titles = worst_mistakes(source, predictions, list("abc"), 3)
    assert chosen.ravel().tolist() == [3, 2, 0]
    assert titles == ["c 100%\ntrue: a", "a 75%\ntrue: c", "b 50%\ntrue: a"]


def test_without_mistakes_there_is_no_picture():
    source = labelled(np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1, np.int32))
    right = Predictions(np.zeros(1, int), np.ones(1), np.zeros(1, bool))
    assert worst_mistakes(source, right, ["a"])[1] == []


def test_padding_is_no_mistake():
    logits = jnp.array([[0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    mask = jnp.array([True, True, False])
    predictions = predict(logits, jnp.array([0, 0, 1]), mask)
    assert predictions.label.tolist() == [1, 0, 0]
    assert predictions.is_wrong.tolist() == [True, False, False]
    # The sigmoid of 2, the difference of the logits.
    np.testing.assert_allclose(predictions.confidence, 0.880797, atol=1e-6)


@pytest.mark.parametrize(
    ("data_parallel", "devices"), slow_from(1, [("jit", 8), ("pmap", 2)])
)
def test_predictions_are_in_the_order_of_the_split(data_parallel, devices):
    """45 test images in batches of 16, split over devices."""
    config = smoke.get_config()
    config.data_parallel = data_parallel
    run = build(config, devices=jax.devices()[:devices])
    state = run.init_state()
    summary = Evaluator(run, lambda: False).evaluate(state.variables, "test")
    variables = jax.device_get(run.parallel.collect(state.variables))
    x = (run.data.test.images / 255 - run.config["normalize"]["mean"]) / (
        run.config["normalize"]["std"]
    )
    logits = run.model.apply(variables, x.astype(np.float32))
    # Of an untrained network the confidences differ, though the labels do not.
    expected = np.max(jax.nn.softmax(logits), -1)
    assert np.ptp(expected) > 1e-4  # an order can be seen
    confidence = summary["predictions"].confidence[:45]
    np.testing.assert_allclose(confidence, expected, atol=1e-6)
    wrong = summary["predictions"].is_wrong
    assert wrong.sum() == 45 - round(45 * summary["accuracy"])


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "kwargs", "layer"),
    [
        ("canet_tiny", {}, "res_0/conv1"),
        ("enhanced_efficient_resnet", {}, "conv1"),
        ("sccnet18", {"stem": "cifar"}, "conv"),
        ("mobilenet_v2", {"stem": "cifar"}, "features.0/0"),
    ],
)
def test_filters_are_those_of_the_first_convolution(name, kwargs, layer):
    module = create_model(name, **kwargs)
    shapes = jax.eval_shape(
        functools.partial(module.init, jax.random.key(0)), jnp.zeros((1, 32, 32, 3))
    )
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes["params"])
    found, kernel = figures.first_kernel(module, params, (32, 32, 3))
    assert found == layer
    assert kernel.shape[:3] == (3, 3, 3)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("canet_tiny", {}, {"sa", "se", "unit_transform"}),
        ("efficient_resnet", {}, {"attention"}),
        (
            "enhanced_efficient_resnet",
            {},
            {"channel_attention", "spatial_attention"},
        ),
        ("sccnet18", {"stem": "cifar"}, {"alpha", "beta"}),
        ("mobilenet_v2_scsa", {"stem": "cifar"}, {"attn"}),
        ("resnet18", {"stem": "cifar", "attention": "cbam"}, {"attn"}),
    ],
)
def test_histograms_tell_every_familys_attention(name, kwargs, expected):
    init = functools.partial(create_model(name, **kwargs).init, jax.random.key(0))
    shapes = jax.eval_shape(init, jnp.zeros((1, 32, 32, 3)))["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)
    tags = report.histograms(params)
    assert all(tag.startswith("weights/") for tag in tags)
    found = {tag: set(tag.split("/")[-1].split(".")) for tag in tags}
    parts = [part for tag, part in found.items() if tag.split("/")[1] == "attention"]
    assert parts
    assert all(part & expected for part in parts)
    assert set().union(*parts) >= expected
    rest = [part for tag, part in found.items() if tag.split("/")[1] != "attention"]
    assert not any(part & expected for part in rest)


@pytest.mark.full
def test_attention_maps_are_of_the_same_images_at_every_call():
    config = smoke.get_config()
    config.log.tensorboard = True
    config.log.attention_maps = True
    run = build(config, devices=smoke.one_device())
    draw = figures.make_attention_maps(run)
    variables = run.init_state().variables
    first, second = draw(variables), draw(variables)
    # 30 validation images.
    assert list(first) == [f"view/attention_maps/{i}" for i in (0, 10, 19, 29)]
    for tag, picture in first.items():
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, second[tag])


def test_attention_maps_are_off_by_default():
    run = build(smoke.get_config(), devices=smoke.one_device())
    assert figures.make_attention_maps(run) is None


@pytest.mark.parametrize(
    ("length", "count", "indices"), [(9, 3, [0, 4, 8]), (2, 4, [0, 1]), (1, 4, [0])]
)
def test_spread_covers_the_whole(length, count, indices):
    assert spread(length, count) == indices


BARE = """
import importlib.metadata, sys
sys.path.insert(0, "tests")
import smoke  # which needs Pillow itself
for name in ("matplotlib PIL clu tensorflow tensorflow_datasets tensorboard tqdm"
             " sklearn grain").split():
    sys.modules[name] = None  # an import raises ModuleNotFoundError
found = importlib.metadata.version
def version(name):
    if name == "jaxattn":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.version = version
from jaxattn.training.loop import train_and_evaluate
config = smoke.get_config()
config.log.tensorboard = config.log.attention_maps = True
results = train_and_evaluate(config, sys.argv[1], devices=smoke.one_device())
print(results["versions"]["jaxattn"], results["test_accuracy"] >= 0)
"""


@pytest.mark.full
def test_without_pictures_packages_and_metadata_a_run_trains(tmp_path):
    """A GPU machine with jax, flax, optax, orbax, numpy and ml_collections."""
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path)],
        cwd=smoke.ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(smoke.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{jaxattn.__version__} True\n"
    assert done.stderr.count("pictures are off") == 1
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"results.json", "report.txt", "metrics.jsonl", "config.json"}
    assert not list(tmp_path.glob("*.png"))
