"""Whole runs that learn label maps, and what is done with what they have learnt."""

import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smoke
from jax import export
from PIL import Image

from jaxattn import create_model, to_torch
from jaxattn.cli import main
from jaxattn.data.augment.transform import IGNORED
from jaxattn.data.preprocess import Canvas, Frame, Preprocess
from jaxattn.data.source import ArraySource, Data
from jaxattn.errors import InterruptedRun, UserError
from jaxattn.inference.evaluation import evaluate, write_evaluation
from jaxattn.inference.export import export_model
from jaxattn.inference.latency import measure_latency
from jaxattn.inference.predict import Predictor
from jaxattn.inference.torch_files import import_torch
from jaxattn.models.safetensors_files import write_safetensors
from jaxattn.ops.features import mark_features
from jaxattn.studies import compare
from jaxattn.tasks.segmentation import MultiView, Segmentation, View
from jaxattn.tasks.segmentation.methods import FLIP, multi_scale
from jaxattn.training import Trainer, build, load_trained, loop, train_and_evaluate
from jaxattn.training.checkpoints.trained import Trained
from jaxattn.training.records.writer import read_metrics
from jaxattn.viz.palette import make_palette

CONFIG = {
    "seed": 3,
    "num_epochs": 3,
    "batch_size": 8,
    "task": "segmentation",
    "normalize": {"mean": (0.5,), "std": (0.25,)},
    "augment": {"flip_probability": 0.5, "crop_padding_px": 2},
    "schedule": {"name": "constant", "learning_rate": 0.2},
    "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0},
    "log": {"tensorboard": False, "every_steps": 1},
}
SIZE, K = 16, 3


class Net(nn.Module):
    """Logits of three classes, and auxiliary ones in training."""

    has_norm: bool = True
    axis_name: str | None = None
    dtype: None = None

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Conv(6, (3, 3))(x)
        if self.has_norm:
            x = nn.BatchNorm(not train, axis_name=self.axis_name)(x)
        x = nn.relu(x)
        logits = nn.Conv(K, (1, 1), name="classifier")(mark_features(self, x))
        if not train and not self.is_initializing():
            return logits
        auxiliary = nn.Conv(K, (1, 1), name="auxiliary")(x)
        return (logits, auxiliary) if train else logits


def arrays(count, seed):
    """Bright squares and dark ones on grey, with a margin that is ignored."""
    rng = np.random.default_rng(seed)
    label_maps = np.zeros((count, SIZE, SIZE), np.int64)
    for each in label_maps:
        for label in (1, 2):
            y, x = rng.integers(1, SIZE - 6, 2)
            each[y : y + 5, x : x + 5] = label
        each[: rng.integers(0, 6)] = IGNORED  # another count in every image
    shades = np.array([128, 220, 30])[np.minimum(label_maps, 2)]
    noise = rng.integers(-20, 20, (count, SIZE, SIZE, 3))
    return (shades[..., None] + noise).astype(np.uint8), label_maps


DATA = {"train": arrays(24, 0), "val": arrays(11, 1), "test": arrays(13, 2)}


NET = Net()


def make_run(devices=1, model=NET, **changes):
    return build(
        {**CONFIG, **changes},
        data=DATA,
        model=model,
        task=Segmentation(),
        devices=jax.devices()[:devices],
    )


# Trained networks, without a training -------------------------------------------------


def with_weights(frame):
    """A network that tells shades apart, better than by chance."""
    net = Net()
    init = jax.jit(lambda x: net.init(jax.random.key(1), x))
    variables = jax.device_get(init(jnp.zeros((1, SIZE, SIZE, 3))))
    return Trained(
        model=net,
        variables=variables,
        task=Segmentation(),
        preprocess=Preprocess(frame=frame, mean=(0.5,), std=(0.25,)),
        class_names=("ground", "bright", "dark"),
        config={
            "model": {"name": "Net"},
            "normalize": {"mean": [0.5], "std": [0.25]},
            "dataset": {"class_names": ["ground", "bright", "dark"]},
        },
        step=0,
    )


@pytest.fixture(scope="module")
def trained():
    return with_weights(Canvas((SIZE, SIZE, 3)))


@pytest.fixture
def command(trained, monkeypatch, capsys):
    """Runs a command with the network that its arguments would name."""
    for module in ("predict", "networks"):
        name = f"jaxattn.cli.{module}.load_network"
        monkeypatch.setattr(name, lambda _: trained)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def expected_maps(trained, images):
    x = trained.preprocess.normalize(jnp.asarray(images))
    logits = trained.model.apply(trained.variables, x)
    return np.argmax(logits, -1).astype(np.uint8)


def test_predictions_are_palette_images_of_the_photos_own_size(
    trained, command, tmp_path
):
    """One larger than the canvas, one smaller, in a folder below."""
    image = np.repeat(np.repeat(DATA["test"][0][0], 3, 0), 3, 1)  # 48 x 48
    (tmp_path / "in" / "b").mkdir(parents=True)
    Image.fromarray(image).save(tmp_path / "in" / "large.png")
    Image.fromarray(image[:12, :9]).save(tmp_path / "in" / "b" / "small.png")
    code, text, _ = command(
        "predict", "--data", tmp_path / "in", "--out", tmp_path / "out"
    )
    assert code == 0
    frame = trained.preprocess.frame
    for name in ("large.png", "b/small.png"):
        photo = np.asarray(Image.open(tmp_path / "in" / name))
        own = expected_maps(trained, frame.show(photo)[None])[0]
        with Image.open(tmp_path / "out" / name) as written:
            assert written.mode == "P"
            palette = np.array(written.getpalette()).reshape(-1, 3)
            label_map = np.asarray(written)
        np.testing.assert_array_equal(palette, make_palette()[: len(palette)])
        assert label_map.shape == photo.shape[:2]
        whole = frame.restore_label_map(own, *photo.shape[:2])
        np.testing.assert_array_equal(label_map, whole)
        overlay = np.asarray(Image.open(tmp_path / "out" / "overlays" / name))
        assert overlay.shape == photo.shape
        share = 100 * np.mean(label_map == label_map[0, 0])
        assert f"{trained.class_names[label_map[0, 0]]} {share:.1f} %" in text
    assert f"2 predictions in {tmp_path / 'out'}" in text


def test_a_crops_label_map_is_put_where_it_was_seen():
    """Of a network that is shown a photo's centre: the rest is not known."""
    label_map = np.arange(16, dtype=np.uint8).reshape(4, 4) % 3
    whole = Frame((4, 4, 3)).restore_label_map(label_map, 8, 16)
    assert (whole[:, :4] == IGNORED).all()
    assert (whole[:, 12:] == IGNORED).all()
    np.testing.assert_array_equal(whole[::2, 4:12:2], label_map)


def test_two_images_never_share_a_file(command, tmp_path):
    image = Image.fromarray(DATA["test"][0][0])
    for name in ("a.png", "a.bmp"):
        image.save(tmp_path / name)
    code, _, err = command("predict", "--data", tmp_path, "--out", tmp_path / "out")
    assert code == 2
    assert err.startswith("jaxattn: a.png: is the picture of two images")


@pytest.mark.parametrize("top", ["", "overlays"])
def test_predictions_never_replace_the_photos(command, tmp_path, top):
    photo = tmp_path / top / "a.png"
    photo.parent.mkdir(exist_ok=True)
    Image.fromarray(DATA["test"][0][0]).save(photo)
    before = photo.read_bytes()
    code, _, err = command("predict", "--data", photo.parent, "--out", tmp_path)
    assert code == 2
    assert err == f"jaxattn: {photo}: is one of the photos; write to another folder\n"
    assert photo.read_bytes() == before


def test_an_imported_network_has_its_task_and_sees_images_whole(tmp_path):
    section = {"name": "fcn", "backbone": "resnet10", "widths": (4, 4, 8, 8)}
    model = create_model(num_classes=3, **section)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    write_safetensors(tmp_path / "a.safetensors", to_torch(model, zeros))
    kwargs = {key: value for key, value in section.items() if key != "name"}
    import_torch(
        tmp_path / "a.safetensors", tmp_path / "w", model="fcn", model_kwargs=kwargs
    )
    trained = load_trained(tmp_path / "w")
    assert isinstance(trained.task, Segmentation)
    assert trained.preprocess.frame == Canvas((512, 512, 3))
    assert trained.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "adaptive"], "--method='adaptive'"),
        (
            ["--thresholds", "0.5"],
            "--thresholds=(0.5,): must be left out: Segmentation",
        ),
        (["--probabilities"], "--probabilities=True: must be left out"),
        (["--no-names"], "--names=False: must be left out"),
        (["--scales", "0.5"], "--scales=(0.5,): must be given with --method tta"),
        (["--method", "tta", "--scales", "0"], "scale=0.0: must be in"),
    ],
)
def test_what_is_classifications_alone_is_refused(
    command, tmp_path, arguments, message
):
    path = tmp_path / "a.png"
    Image.fromarray(DATA["test"][0][0]).save(path)
    code, _, err = command("predict", "--data", path, "--out", tmp_path, *arguments)
    assert code == 2
    assert err.startswith(f"jaxattn: {message}")
    assert err.count("\n") == 1


def test_views_are_turned_back_and_averaged(trained):
    """The probabilities, of mirror images and of scales."""
    images = DATA["test"][0][:3]
    x = trained.preprocess.normalize(jnp.asarray(images))

    @jax.jit
    def softmax(x):
        return jax.nn.softmax(trained.model.apply(trained.variables, x))

    mirrored = softmax(x[:, :, ::-1])[:, :, ::-1]
    predictor = Predictor(trained, batch_size=2, fold_batch_norm=False)
    told = predictor.predict(images, MultiView(views=FLIP)).label_map
    wanted = np.argmax(softmax(x) + mirrored, -1)
    assert (told != np.argmax(softmax(x), -1)).any()  # or nothing would be tested
    np.testing.assert_array_equal(told, wanted)
    assert told.dtype == np.uint8
    double = predictor.predict(images, MultiView(views=(View(), View(2.0))))
    assert double.label_map.shape == (3, SIZE, SIZE)
    assert np.mean(double.label_map == np.argmax(softmax(x), -1)) > 0.5
    assert len(multi_scale((0.5, 1.0)).views) == 4


def test_an_image_that_cannot_be_read_has_no_label_map(command, tmp_path):
    Image.fromarray(DATA["test"][0][0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    code, text, err = command(
        "predict", "--data", tmp_path, "--out", tmp_path / "o", "--on-bad-image", "skip"
    )
    assert code == 0
    assert "not known" in text
    assert "1 images could not be read: no label" in err
    written = sorted(p.name for p in (tmp_path / "o").rglob("*.png"))
    assert written == ["a.png", "a.png"]


def test_exported_network_answers_what_is_predicted(trained, tmp_path):
    """At another number of images than any before; beside it probabilities."""
    path = tmp_path / "model.jaxattn"
    export_model(trained, path, weights="best", platforms=("cpu",), probabilities=True)
    images = DATA["test"][0][:5]
    answered = export.deserialize(bytearray(path.read_bytes())).call(images)
    told = Predictor(trained, batch_size=5).predict(images, trained.task.plain)
    assert answered["label_map"].dtype == jnp.uint8
    np.testing.assert_array_equal(answered["label_map"], told.label_map)
    best = np.argmax(answered["probabilities"], -1)
    np.testing.assert_array_equal(best, told.label_map)
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["output"].startswith("a mapping: label_map: uint8 [N, H, W]")
    assert measure_latency(trained, 1, seconds=0).calls == 5


def data_of(trained):
    images, label_maps = DATA["test"]
    source = ArraySource(images, {"label_map": label_maps.astype(np.uint8)})
    return Data(
        name="own",
        train=source,
        val=None,
        test=source,
        class_names=trained.class_names,
        image_shape=(SIZE, SIZE, 3),
    )


def test_evaluation_counts_every_pixel_once_at_any_batch_size(trained, tmp_path):
    images, label_maps = DATA["test"]
    predicted, valid = expected_maps(trained, images), label_maps != IGNORED
    wanted = np.zeros((K, K), int)
    np.add.at(wanted, (label_maps[valid], predicted[valid]), 1)
    data = data_of(trained)
    for batch_size in (4, 13):
        predictor = Predictor(trained, batch_size=batch_size, fold_batch_norm=False)
        assessed = evaluate(predictor, data, trained.task.plain)
        np.testing.assert_array_equal(assessed.summary["confusion"], wanted)
    text = write_evaluation(tmp_path, assessed, trained, model="Net")
    figure = assessed.summary["mean_iou"]
    assert text.startswith(f"mean_iou {figure:.4f}  of 13 images, {valid.sum():,} pix")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["mean_iou"] == figure
    assert list(results["class_iou"]) == list(trained.class_names)
    for name in ("confusion_matrix", "class_iou", "overlays", "worst_images"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_grad_cam_is_of_the_class_that_is_asked_for(trained):
    """Where the last map's weights of a class are 0, nothing speaks for it."""
    variables = jax.tree.map(np.array, trained.variables)
    kernel = variables["params"]["classifier"]["kernel"]
    kernel[..., 1] = 0
    images = DATA["test"][0][:2]
    x = trained.preprocess.normalize(jnp.asarray(images))
    drawn = {}
    for name in ("ground", "bright"):
        pages = trained.task.make_pages(
            trained.model, trained.class_names, of_class=name
        )
        (figure, _) = pages(variables, x, images, ["a", "b"], [{}, {}])
        drawn[name] = figure
        assert f"Grad-CAM of {name}" in figure.get_suptitle()
    overlays = [figure.axes[1].images[1].get_array() for figure in drawn.values()]
    assert np.max(overlays[0]) > 0
    assert np.max(overlays[1]) == 0
    with pytest.raises(UserError, match="--class='sky'"):
        trained.task.make_pages(trained.model, trained.class_names, of_class="sky")


# A user's own arrays ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:, :8], r"label maps are int64 \[24, 8, 16\], must be integers"),
        (lambda y: y.astype(float), "label maps are float64"),
        (lambda y: y - 1, "has a class -1, must be in"),
        (lambda y: y + 1, r"has a class 256, must be in \[0, 254\], or 255"),
    ],
)
def test_label_maps_that_do_not_fit_are_refused(change, message):
    images, label_maps = DATA["train"]
    with pytest.raises(UserError, match=message):
        Segmentation().make_source(images, change(label_maps), "data['train']")


def test_classes_of_arrays_are_numbered_and_named():
    task, names = Segmentation(), ("0", "1", "2")
    source = task.make_source(*DATA["train"], "data['train']")
    assert task.find_class_names(source) == names
    none = task.make_source(DATA["train"][0], np.full((24, SIZE, SIZE), 255), "")
    assert task.find_class_names(none) == ("0",)
    shape = jax.ShapeDtypeStruct((2, SIZE, SIZE, 4), jnp.float32)
    assert task.name_outputs(shape, names) == (*names, "3")
    for wrong in ((2, 4), (2, SIZE, SIZE, 2), (2, SIZE, SIZE, 256)):
        with pytest.raises(UserError, match="must be logits"):
            task.name_outputs(jax.ShapeDtypeStruct(wrong, jnp.float32), names)
    weighted = Segmentation(class_weights=(1.0, 2.0))
    with pytest.raises(UserError, match=r"loss.class_weights=\(1.0, 2.0\): must be 4"):
        weighted.name_outputs(shape, names)
    example = {"label_map": np.array([[0, 1, 1, IGNORED]], np.uint8)}
    assert task.name_target(example, names) == "1 66.7 %, 0 33.3 %"


# Trainings ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("segmentation") / "run"
    return workdir, train_and_evaluate(make_run(), workdir)


def test_a_run_learns_tests_and_reports(undisturbed):
    workdir, results = undisturbed
    assert results["test_mean_iou"] > 0.5  # 0.3 of the largest class alone
    for key in ("best_val_mean_iou", "last_test_mean_iou", "test_pixel_accuracy"):
        assert 0 < results[key] <= 1
    assert results["test_mean_iou_ema"] is None
    assert "test_accuracy" not in results
    report = (workdir / "report.txt").read_text()
    assert f"test mean IoU        {results['test_mean_iou']:.4f}" in report
    rows = [row for row in read_metrics(workdir) if "epoch/epoch" in row]
    best = max(row["epoch/val_mean_iou"] for row in rows)
    assert best == pytest.approx(results["best_val_mean_iou"])
    assert {"epoch/train_pixel_accuracy", "epoch/val_loss"} <= rows[0].keys()
    for name in ("history", "confusion_matrix", "class_iou", "overlays"):
        assert (workdir / f"{name}.png").exists()
    trained = load_trained(workdir, model=Net(), task=Segmentation())
    data = data_of(trained)
    predictor = Predictor(trained, fold_batch_norm=False)
    assessed = evaluate(predictor, data, trained.task.plain)
    figure = assessed.summary["mean_iou"]
    np.testing.assert_allclose(figure, results["test_mean_iou"], rtol=1e-6)


def test_runs_are_compared_by_their_own_figure(undisturbed):
    (group,) = compare.group_runs([compare.read_run(undisturbed[0])])
    table = compare.format_markdown([group])
    assert "| validation | test mean IoU | last weights |" in table
    assert compare.best_of([group]) is group
    assert "test_mean_iou_mean" in compare.format_csv([group])
    compare.plot([group])


def test_interrupted_it_resumes_exactly(undisturbed, tmp_path, monkeypatch):
    """Stopped in a step, and in an evaluation."""
    workdir, expected = undisturbed
    for asked in (2, 5):
        monkeypatch.setattr(loop, "Interrupt", lambda n=asked: smoke.InterruptedAt(n))
        with pytest.raises(InterruptedRun):
            train_and_evaluate(make_run(), tmp_path)
    monkeypatch.setattr(loop, "Interrupt", lambda: smoke.InterruptedAt(10**6))
    results = train_and_evaluate(make_run(), tmp_path)
    networks = [
        load_trained(folder, weights="last", model=Net(), task=Segmentation())
        for folder in (workdir, tmp_path)
    ]
    chex.assert_trees_all_equal(*(each.variables for each in networks))
    for key in ("best_val_mean_iou", "test_mean_iou", "test_loss"):
        assert results[key] == expected[key]


def three_steps(devices=1, model=NET, **changes):
    """Weights and metrics of 3 steps, and an evaluation after them."""
    run = make_run(devices, model, num_epochs=1, **changes)
    trainer = Trainer(run)
    *_, last = updates = list(trainer.train())
    metrics = [jax.device_get(update.metrics) for update in updates]
    losses = np.concatenate([each["loss"] for each in metrics])
    variables = run.parallel.collect(last.state.variables)
    return jax.device_get(variables), losses, trainer.evaluate(last.state, "test")


@pytest.fixture(scope="module")
def one_device():
    return three_steps()


@pytest.mark.full
@pytest.mark.parametrize(("devices", "way"), [(8, "jit"), (8, "pmap"), (2, "pmap")])
def test_every_way_trains_as_one_device(one_device, devices, way):
    variables, losses, summary = three_steps(devices, data_parallel=way)
    expected, expected_losses, expected_summary = one_device
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    chex.assert_trees_all_close(variables, expected, atol=1e-5, rtol=0)
    total = expected_summary["confusion"].sum()
    assert summary["confusion"].sum() == total
    assert total == (DATA["test"][1] != IGNORED).sum()


@pytest.mark.full
def test_micro_batches_have_the_loss_of_their_batch():
    """On one device and in shards, where the network treats every image alone.

    Images have different numbers of pixels that are not ignored, so the mean of the
    parts' own means would be another.
    """
    net = Net(has_norm=False)
    whole = three_steps(model=net)
    for devices, way in ((1, "jit"), (2, "pmap")):
        parts = three_steps(devices, net, accumulate_steps=2, data_parallel=way)
        np.testing.assert_allclose(parts[1], whole[1], rtol=1e-5)
        chex.assert_trees_all_close(parts[0], whole[0], atol=1e-6, rtol=0)
