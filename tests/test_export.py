"""Exported networks: what is in the files, and that they need jax and numpy alone."""

import json
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smoke
from jax import export
from tiers import slow_from

from jaxattn import UserError, create_model
from jaxattn.cli import main
from jaxattn.data.preprocess import Frame, Preprocess
from jaxattn.inference.export import export_model
from jaxattn.inference.predict import Predictor, make_answer
from jaxattn.models.resnet import ResNet
from jaxattn.models.sccnet import SCCNet
from jaxattn.ops import Conv, cpu_kernels, resize_bilinear
from jaxattn.tasks.classification import Classification
from jaxattn.tasks.classification.methods import Plain
from jaxattn.training.checkpoints.trained import Trained, load_trained

SCRIPT = pathlib.Path(__file__).parent.parent / "examples" / "run_exported.py"
NORMALIZE = {"mean": [0.5], "std": [0.2]}


@pytest.fixture(scope="module")
def workdir(trained_workdir):
    return trained_workdir


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "made" / "model.jaxattn"
    arguments = ("export", "--workdir", workdir, "--out", path, "--weights", "last")
    assert main([str(a) for a in arguments]) == 0
    return path


def random_images(N, *shape):
    return np.random.default_rng(N).integers(0, 256, (N, *shape), np.uint8)


def untrained(model, size):
    shape = (size, size, 3)
    init = jax.jit(lambda x: model.init(jax.random.key(0), x))
    return Trained(
        model=model,
        variables=jax.device_get(init(jnp.zeros((1, *shape)))),
        task=Classification(),
        preprocess=Preprocess(frame=Frame((size, size, 3)), **NORMALIZE),
        class_names=("a", "b", "c"),
        config={"model": {"name": "small"}, "normalize": NORMALIZE},
        step=0,
    )


def call(path, images):
    loaded = export.deserialize(bytearray(path.read_bytes()))
    return np.asarray(loaded.call(images))


@pytest.mark.full
def test_exported_network_needs_jax_and_numpy_alone(workdir, exported, tmp_path):
    """The example script, without what else is installed, at three batch sizes."""
    code = (
        "import runpy, sys; sys.modules.update(jaxattn=None, flax=None, optax=None)\n"
        "script, model, *files = sys.argv[1:]\n"
        "for file in files: sys.argv[1:] = model, file; runpy.run_path(script)"
    )
    batches = [random_images(N, 16, 16, 3) for N in (1, 3, 7)]
    files = [tmp_path / f"{len(images)}.npy" for images in batches]
    for file, images in zip(files, batches, strict=True):
        np.save(file, images)
    command = [sys.executable, "-c", code, *map(str, (SCRIPT, exported, *files))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pairs = [[p.split("=") for p in row.split()] for row in done.stdout.splitlines()]
    assert [[name for name, _ in row] for row in pairs] == 11 * [list("01234")]
    printed = np.array([[float(value) for _, value in row] for row in pairs])
    predictor = Predictor(
        load_trained(workdir, weights="last"), devices=smoke.one_device()
    )
    predicted = [predictor.predict(images, Plain()) for images in batches]
    expected = np.concatenate([decision.probabilities for decision in predicted])
    np.testing.assert_allclose(printed, expected, rtol=0, atol=1e-5)


def test_description_says_what_it_takes(workdir, exported):
    about = json.loads(exported.with_suffix(".json").read_text())
    config = json.loads((workdir / "config.json").read_text())
    loaded = export.deserialize(bytearray(exported.read_bytes()))
    assert about["class_names"] == list("01234")
    assert about["image_shape"] == [16, 16, 3]
    assert about["model"] == config["model"]
    assert about["normalize"] == config["normalize"]
    assert about["platforms"] == list(loaded.platforms) == ["cpu", "cuda", "tpu"]
    assert about["calling_convention"] == loaded.calling_convention_version
    assert (about["weights"], about["step"]) == ("last", 120)
    assert about["dtype"] == "float32"
    assert about["versions"]["jax"] == jax.__version__
    assert loaded.out_avals[0].dtype == np.float32


@pytest.mark.full
def test_bfloat16_computes_less_precisely(workdir, exported, tmp_path):
    trained, path = load_trained(workdir, weights="last"), tmp_path / "a.jaxattn"
    export_model(trained, path, weights="last", dtype="bfloat16", platforms=["cpu"])
    images = random_images(16, 16, 16, 3)
    half, whole = call(path, images), call(exported, images)
    assert half.dtype == np.float32
    # 8 bits a value, some dozen layers: a few hundredths of a probability.
    np.testing.assert_allclose(half, whole, rtol=0, atol=0.05)
    assert np.abs(half - whole).max() > 1e-5
    assert json.loads(path.with_suffix(".json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "model",
    slow_from(
        2,
        [
            create_model("canet_tiny", 3),
            SCCNet((1, 1), (8, 16), num_classes=3, stem="cifar"),
            ResNet((1, 1, 1, 1), num_classes=3, stem="cifar", attention="scsa"),
            create_model("enhanced_efficient_resnet", 3, base_width=8),
            create_model("vgg_a_light", 3),
        ],
    ),
    ids=["canet", "scc", "scsa", "cbam", "vgg"],
)
def test_every_family_is_exported(model, tmp_path):
    trained, path = untrained(model, 32), tmp_path / "a.jaxattn"
    export_model(trained, path, weights="best")
    images = random_images(3, *trained.image_shape)
    expected = jax.jit(make_answer(trained))(trained.variables, images)
    # One program for any batch size rounds otherwise than one for three images.
    np.testing.assert_allclose(call(path, images), expected, rtol=0, atol=1e-5)


class Resized(nn.Module):
    """Its interpolation spreads a matrix that is known over as many images as come."""

    dtype: str | None = None

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        x = resize_bilinear(Conv(4, 3, name="conv")(x), (7, 5))
        return jnp.tanh(x).mean((1, 2))[:, :3]


def test_a_resized_map_is_exported_for_any_number_of_images(tmp_path):
    trained, path = untrained(Resized(), 8), tmp_path / "a.jaxattn"
    export_model(trained, path, weights="best", platforms=["cpu"])
    images = random_images(3, *trained.image_shape)
    expected = jax.jit(make_answer(trained))(trained.variables, images)
    np.testing.assert_allclose(call(path, images), expected, rtol=0, atol=1e-6)


@pytest.mark.full
def test_calls_of_onednn_stay_out(monkeypatch, tmp_path):
    """Other machines have no such library; tracing one would fail here, too."""
    model = create_model("enhanced_efficient_resnet", 3, base_width=8)
    trained, path = untrained(model, 8), tmp_path / "a.jaxattn"
    monkeypatch.delenv("JAXATTN_CPU_KERNELS")
    monkeypatch.setattr(cpu_kernels, "_registered_suffix", lambda: "none")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert cpu_kernels.is_enabled()
    export_model(trained, path, weights="best", platforms=["cpu"])
    assert b"jaxattn_conv" not in path.read_bytes()
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["versions"]["convolutions"] == "XLA"


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("", {}, "cannot be written .is a folder"),
        ("a.json", {}, "must be of another suffix than .json"),
        ("a", {"platforms": ["gpu"]}, "platforms='gpu': .*choices: cpu, cuda, tpu"),
        ("a", {"dtype": "float16"}, "dtype='float16': did you mean 'bfloat16'"),
    ],
)
def test_mistake_is_one_line(tmp_path, out, options, message):
    trained = Trained(
        model=create_model("enhanced_efficient_resnet", 3, base_width=8),
        variables={},  # refused before they are looked at
        task=Classification(),
        preprocess=Preprocess(frame=Frame((8, 8, 3)), **NORMALIZE),
        class_names=("a", "b", "c"),
        config={},
        step=0,
    )
    with pytest.raises(UserError, match=message) as caught:
        export_model(trained, tmp_path / out, weights="best", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_missing_workdir_is_one_line(capsys, tmp_path):
    out = tmp_path / "a.jaxattn"
    assert main(["export", "--workdir", str(tmp_path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "holds no run" in error
    assert error.count("\n") == 1


@pytest.mark.full
def test_latency_is_a_row_for_every_batch_size(capsys, workdir):
    arguments = ("--workdir", str(workdir), "--batch-sizes", "1", "4")
    assert main(["benchmark-latency", *arguments, "--seconds", "0.1"]) == 0
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("efficient_resnet, 16 x 16 pixels, float32, on ")
    assert header.split() == ["batch", "calls", "p50", "ms", "p95", "ms", "images/s"]
    figures = [list(map(float, row.split())) for row in rows]
    assert [row[0] for row in figures] == [1, 4]
    for batch, calls, p50, p95, rate in figures:
        assert calls >= 5
        assert p95 >= p50 > 0
        assert 1e3 * batch / rate > 0.49 * p50  # half of the calls are no faster
