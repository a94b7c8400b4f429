"""Networks with their weights fixed answer as before."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smoke
from tiers import full_but, slow_from

from jaxattn import UserError, create_model, list_models
from jaxattn.cli import main
from jaxattn.data.preprocess import Frame, Preprocess
from jaxattn.data.source import ArraySource
from jaxattn.inference.evaluation import evaluate, load_data_of
from jaxattn.inference.export import export_model
from jaxattn.inference.freezing import compile_network, freeze
from jaxattn.inference.latency import measure_latency
from jaxattn.inference.predict import Predictor
from jaxattn.models.resnet import ResNet
from jaxattn.ops import BatchNorm, Conv, onednn, onednn_inference
from jaxattn.ops.onednn_inference import Closing
from jaxattn.ops.primitive import Window
from jaxattn.tasks.classification import Classification
from jaxattn.tasks.classification.methods import Plain
from jaxattn.training.checkpoints.trained import Trained, load_trained

NORMALIZE = {"mean": [0.5], "std": [0.2]}


def normal(seed, *shape):
    return np.asarray(jax.random.normal(jax.random.key(seed), shape))


def trained_like(model, x):
    """Variables whose normalisations do something."""
    variables = jax.jit(functools.partial(model.init, train=False))(
        {"params": jax.random.key(0)}, x
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.5, 2, leaf.shape)
        if name == "mean" or (name == "bias" and leaf.ndim == 1):
            return rng.normal(0, 0.5, leaf.shape)
        return leaf

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.asarray(draw(path, leaf), leaf.dtype), variables
    )


def frozen_and_plain(model, x, variables=None):
    apply = functools.partial(model.apply, train=False)
    variables = trained_like(model, x) if variables is None else variables
    frozen = compile_network(apply, variables)
    return frozen(x), jax.jit(apply)(variables, x)


def assert_close(frozen, plain, rtol=1e-5):
    np.testing.assert_allclose(frozen, plain, rtol=0, atol=rtol * np.abs(plain).max())


def operations(model, x):
    """Counts the operations for every batch."""
    apply = functools.partial(model.apply, train=False)
    program, weights = freeze(apply, trained_like(model, x), x)
    names = [eqn.primitive.name for eqn in jax.make_jaxpr(program)(weights, x).eqns]
    return {name: names.count(name) for name in names}


# Networks ---------------------------------------------------------------------------


def test_small_resnet_is_folded_to_convolutions_and_offsets():
    model = ResNet((1, 1, 1, 1), widths=(4, 6, 8, 8), stem="cifar", num_classes=3)
    x = normal(1, 2, 8, 8, 3)
    assert_close(*frozen_and_plain(model, x))
    found = operations(model, x)
    assert not {"rsqrt", "mul", "sub"} & found.keys()
    # Four residuals, twelve offsets of convolutions and that of the last layer.
    assert found["add"] == 17


@pytest.mark.full
def test_lower_dtype_is_folded_too():
    model = ResNet((1, 1, 1, 1), widths=(4, 6, 8, 8), stem="cifar", num_classes=3)
    model = model.clone(dtype=jnp.bfloat16)
    x = normal(1, 2, 8, 8, 3)
    variables = trained_like(model, x)
    frozen, _ = frozen_and_plain(model, x, variables)
    exact = model.clone(dtype=None).apply(variables, x, train=False)
    assert frozen.dtype == jnp.float32
    assert_close(frozen, exact, rtol=0.05)
    assert "rsqrt" not in operations(model, x)


# One of each family in tier full; the others take minutes.
FAMILIES = (
    "canet_tiny", "efficient_resnet", "sccnet18", "shufflenet_v2_x0_5", "vgg_a_bn",
)  # fmt: skip
OTHERS = [name for name in list_models("classification") if name not in FAMILIES]
NETWORKS = slow_from(len(FAMILIES), [*FAMILIES, *OTHERS])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_answers_the_same(name):
    """In float64: SCC jumps where two kernel sizes are equal but for rounding."""
    has_stem = hasattr(create_model(name), "stem")
    model = create_model(name, 5, **({"stem": "cifar"} if has_stem else {}))
    with jax.enable_x64(True):
        x = normal(1, 2, 32, 32, 3).astype(np.float64)
        variables = jax.tree.map(np.float64, trained_like(model, x))
        frozen, plain = frozen_and_plain(model, x, variables)
    assert frozen.dtype == plain.dtype == np.float64
    assert_close(frozen, plain, rtol=1e-10)


@pytest.mark.usefixtures("enabled")
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_answers_the_same_by_onednn(name):
    if name.startswith("sccnet"):
        pytest.skip("in float32 SCC jumps where two kernel sizes are equal")
    has_stem = hasattr(create_model(name), "stem")
    model = create_model(name, 5, **({"stem": "cifar"} if has_stem else {}))
    assert_close(*frozen_and_plain(model, normal(1, 3, 32, 32, 3)))


# A user's own modules ---------------------------------------------------------------


class Own(nn.Module):
    """Flax's own layers; the first map is used twice, the last twice normalised."""

    @nn.compact
    def __call__(self, x, *, train=False):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        first = nn.Conv(4, (3, 3))(x)
        y = nn.relu(norm()(first)) + first
        y = norm()(nn.Conv(6, (1, 1), feature_group_count=2)(y))
        y = 2.0 * norm()(nn.Dense(8)(nn.silu(y))) - 1.0
        return nn.Dense(3)(y.mean((1, 2)))


def test_own_network_answers_the_same():
    x = normal(1, 2, 8, 8, 3)
    assert_close(*frozen_and_plain(Own(), x))
    # Of the first map, which is wanted as it is, the normalisation stays; then SiLU.
    assert operations(Own(), x)["mul"] == 2


class Gated(nn.Module):
    """A factor for each channel that depends on the image."""

    @nn.compact
    def __call__(self, x, *, train=False):
        gate = nn.sigmoid(jnp.mean(x, (0, 1, 2), keepdims=True))
        y = Conv(3, 3, padding=1, name="conv")(x) * gate
        return BatchNorm(name="norm")(y, train=train)


def test_what_depends_on_the_image_is_not_a_weight():
    model, variables = Gated(), trained_like(Gated(), normal(0, 1, 4, 4, 3))
    apply = functools.partial(model.apply, train=False)
    frozen = compile_network(apply, variables)
    for seed in (1, 2):
        x = normal(seed, 1, 4, 4, 3)
        assert_close(frozen(x), apply(variables, x))


class Negated(nn.Module):
    """Operations that look like an offset or an activation, and are not."""

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        shape = (1, 1, 1, 3)
        offset = self.param("offset", nn.initializers.normal(), shape)
        y = offset - Conv(3, 3, padding=1, name="a")(x)
        y = jnp.minimum(Conv(3, 3, padding=1, name="b")(y), 0.5)
        y = jnp.maximum(Conv(3, 3, padding=1, name="c")(y), offset)
        y = nn.relu(Conv(3, 3, padding=1, name="d")(y)) * 3
        total = self.param("total", nn.initializers.normal(), (1, 4, 4, 1))
        return Conv(3, 1, name="e")(y) + total, Conv(1, 1, name="f")(y) + x


def check_look_alikes():
    x = normal(1, 2, 4, 4, 3)
    for frozen, plain in zip(*frozen_and_plain(Negated(), x), strict=True):
        assert_close(frozen, plain)


def test_look_alikes_are_left_alone():
    check_look_alikes()


@pytest.mark.usefixtures("enabled")
def test_look_alikes_are_left_alone_by_onednn():
    check_look_alikes()


# oneDNN -----------------------------------------------------------------------------

WINDOWS = {
    "1x1": (1, 1, 0, 1, 1),
    "1x1 padded": (1, 1, 1, 1, 1),
    "2x2 stride 2": (2, 2, 0, 1, 1),
    "3x3": (3, 1, 1, 1, 1),
    "3x3 stride 2": (3, 2, 1, 1, 1),
    "5x5 dilated": (5, 1, 4, 2, 1),
    "5x5 stride 2 in groups": (5, 2, 2, 1, 2),
    "depthwise": (3, 2, 1, 1, 8),
}


def by_onednn(x, kernel, offset, other, activation, window):
    closing = Closing(other, activation)
    return onednn_inference.conv2d(x, kernel, offset, Window(*window), closing)


def check_closed(x, kernel, window, *, activation, adds, rtol):
    offset = normal(2, kernel.shape[-1])
    y = onednn.conv2d(x, kernel, *window)
    other = normal(3, *y.shape).astype(y.dtype) if adds else None
    expected = y + offset.reshape(1, 1, 1, -1)
    expected = expected if other is None else expected + other
    expected = {"relu": nn.relu, "relu6": nn.relu6}.get(activation, lambda v: v)(
        expected
    )
    run = jax.jit(by_onednn, static_argnums=(4, 5))
    found = run(x, kernel, offset, other, activation, window)
    assert found.dtype == x.dtype
    assert_close(np.float32(found), np.float32(expected), rtol)


@pytest.mark.usefixtures("enabled")
@pytest.mark.parametrize(
    ("batch", "activation", "adds"),
    full_but(
        [(1, "relu", True), (2, "relu6", False), (3, None, True), (9, None, False)],
        (1, "relu", True),
    ),
)
@pytest.mark.parametrize("window", WINDOWS)
def test_convolution_is_closed_in_one_pass(window, batch, activation, adds):
    size, *window = WINDOWS[window]
    x, kernel = normal(0, batch, 13, 12, 8), normal(1, size, size, 8 // window[-1], 16)
    check_closed(x, kernel, tuple(window), activation=activation, adds=adds, rtol=1e-5)


@pytest.mark.usefixtures("enabled")
@pytest.mark.parametrize("batch", [1, 2])
def test_channels_are_divided_where_the_kernel_is_large(monkeypatch, batch):
    monkeypatch.setattr(onednn_inference, "_num_threads", lambda: 2)
    x, kernel = normal(0, batch, 8, 8, 128), normal(1, 3, 3, 128, 128)
    check_closed(x, kernel, (1, 1, 1, 1), activation="relu", adds=True, rtol=1e-5)


# Commands ---------------------------------------------------------------------------


def small(dtype=None):
    model = ResNet(
        (1, 1, 1, 1), widths=(4, 6, 8, 8), stem="cifar", num_classes=3, dtype=dtype
    )
    return Trained(
        model=model,
        variables=trained_like(model, normal(1, 2, 8, 8, 3)),
        task=Classification(),
        preprocess=Preprocess(frame=Frame((8, 8, 3)), **NORMALIZE),
        class_names=("a", "b", "c"),
        config={"model": {"name": "small"}, "normalize": NORMALIZE},
        step=0,
    )


def images(N):
    return np.random.default_rng(N).integers(0, 256, (N, 8, 8, 3), np.uint8)


def test_prediction_without_folding_is_the_networks_own():
    trained, x = small(), images(9)
    plain = jax.jit(functools.partial(trained.model.apply, train=False))(
        trained.variables, trained.preprocess.normalize(x)
    )
    off, on = (
        next(
            Predictor(
                trained, devices=smoke.one_device(), fold_batch_norm=fold
            ).outputs(ArraySource(x, {}), Plain().views)
        )[0]
        for fold in (False, True)
    )
    np.testing.assert_array_equal(off, plain)
    assert_close(on, plain)
    assert np.abs(on - off).max() > 0  # it does something


@pytest.mark.parametrize("count", [1, 8])
def test_folded_prediction_is_the_same_on_several_devices(count):
    trained, x = small(), images(11)
    predictor = Predictor(trained, batch_size=8, devices=jax.devices()[:count])
    labels, probabilities = predictor.predict(x, Plain())
    expected = trained.task.answer(
        trained.model.apply(trained.variables, trained.preprocess.normalize(x))
    )
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(labels, np.argmax(expected, -1))


def test_dtype_is_chosen_where_the_network_has_one():
    trained, x = small(), images(9)
    _, expected = Predictor(trained).predict(x, Plain())
    _, rounded = Predictor(trained, dtype="bfloat16").predict(x, Plain())
    assert 0 < np.abs(rounded - expected).max() < 0.05
    own = dataclasses.replace(trained, model=Own())
    with pytest.raises(UserError, match="dtype='bfloat16': must be left out: Own has"):
        Predictor(own, dtype="bfloat16")
    with pytest.raises(UserError, match="dtype='float16'"):
        measure_latency(trained, 1, seconds=0.0, dtype="float16")


@pytest.mark.full
@pytest.mark.parametrize("fold", [True, False])
def test_exported_network_answers_the_same(tmp_path, fold):
    trained, path = small(), tmp_path / "model.jaxattn"
    export_model(trained, path, weights="last", platforms=["cpu"], fold_batch_norm=fold)
    call = jax.export.deserialize(bytearray(path.read_bytes())).call
    for N in (1, 5):
        expected = trained.task.answer(
            trained.model.apply(
                trained.variables, trained.preprocess.normalize(images(N))
            )
        )
        np.testing.assert_allclose(call(images(N)), expected, atol=1e-5)


def test_evaluation_has_the_same_accuracy(trained_workdir):
    trained = load_trained(trained_workdir)
    data = load_data_of(trained, {})
    on, off = (
        evaluate(Predictor(trained, fold_batch_norm=fold), data, Plain()).summary
        for fold in (True, False)
    )
    assert on["accuracy"] == off["accuracy"]
    assert math.isclose(on["loss"], off["loss"], rel_tol=1e-4)


def test_commands_take_dtype_and_folding(trained_workdir, tmp_path, capsys):
    data = tmp_path / "images.npz"
    np.savez(data, images=np.zeros((2, 16, 16, 3), np.uint8))
    run = ("predict", "--workdir", trained_workdir, "--data", data)
    for flags in (["--dtype", "bfloat16"], ["--no-fold-batch-norm"]):
        out = tmp_path / "out.csv"
        assert main([str(a) for a in (*run, "--out", out, *flags)]) == 0
    assert "2 predictions" in capsys.readouterr().out
