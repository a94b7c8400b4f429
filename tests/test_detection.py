"""Detection as a task: COCO's numbers of a whole split, on the same trainer."""

import csv
import json
import os
import pathlib
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smoke
from flax import struct
from PIL import Image

from jaxattn.__main__ import main
from jaxattn.data.datasets.registry import load_data
from jaxattn.data.preprocess import Canvas, ImageFiles
from jaxattn.data.source import ArraySource, Data
from jaxattn.data.splits import take
from jaxattn.errors import UserError
from jaxattn.models.detection import Detections, per_image
from jaxattn.tasks.detection.assessment import assess, format_assessment
from jaxattn.tasks.detection.figures import confuse, draw_results, judge
from jaxattn.tasks.detection.methods import Decision
from jaxattn.tasks.detection.metrics import (
    STATS,
    Predictions,
    Scene,
    evaluate_scenes,
    restore_boxes,
    scenes,
)
from jaxattn.tasks.detection.predictions import (
    restored,
    tell_predictions,
    write_predictions,
)
from jaxattn.tasks.detection.report import class_table, count_classes
from jaxattn.tasks.detection.task import Detection
from jaxattn.training import build, make_eval_step, train_and_evaluate
from jaxattn.training.evaluate import Evaluator
from jaxattn.training.trainer import Trainer

GOLDEN = pathlib.Path(__file__).parent / "golden" / "dense" / "coco_metrics.npz"
ONE = smoke.one_device()


# COCO's numbers -----------------------------------------------------------------------


def corners(bbox):
    x, y, w, h = bbox.T
    return np.stack([x, y, x + w, y + h], 1)


def golden_scenes(golden):
    gt = {k: golden[f"gt/{k}"] for k in ("image_id", "category_id", "bbox", "area")}
    dt = {k: golden[f"dt/{k}"] for k in ("image_id", "category_id", "bbox", "score")}
    crowd = golden["gt/iscrowd"].astype(bool)
    for image in golden["image_ids"]:
        own, found = gt["image_id"] == image, dt["image_id"] == image
        yield Scene(
            boxes=corners(gt["bbox"][own]),
            classes=gt["category_id"][own] - gt["category_id"].min(),
            ignored=crowd[own],
            areas=gt["area"][own],
            found_boxes=corners(dt["bbox"][found]),
            found_scores=dt["score"][found],
            found_classes=dt["category_id"][found] - gt["category_id"].min(),
        )


def test_the_numbers_are_those_of_coco():
    golden = np.load(GOLDEN)
    figures = evaluate_scenes(list(golden_scenes(golden)))
    stats = [figures[key] for key in STATS]
    # Boxes become corners and sides again, which rounds.
    np.testing.assert_allclose(stats, golden["stats"], rtol=0, atol=1e-12)
    for key, name in (("class_ap", "ap"), ("class_ap_50", "ap50"), ("class_ar", "ar")):
        np.testing.assert_allclose(figures[key], golden[f"class_{name}"], atol=1e-12)
    curves = golden["precision_area_all_max100"][0]
    np.testing.assert_allclose(figures["precision_50"], curves, atol=1e-7)


def scene(boxes, found, scores, classes=None, found_classes=None, ignored=None):
    boxes, found = (np.array(v, np.float64).reshape(-1, 4) for v in (boxes, found))
    n, d = len(boxes), len(found)
    return Scene(
        boxes,
        np.zeros(n, int) if classes is None else np.array(classes),
        np.zeros(n, bool) if ignored is None else np.array(ignored),
        (boxes[:, 2:] - boxes[:, :2]).prod(1),
        found,
        np.array(scores, np.float64),
        np.zeros(d, int) if found_classes is None else np.array(found_classes),
    )


BOXES = [[0, 0, 10, 10], [20, 0, 40, 10], [0, 20, 10, 50]]


def test_perfect_detections_are_perfect_and_none_are_nothing():
    # An annotation of id 0 would count as not found.
    perfect = evaluate_scenes([scene(BOXES, BOXES, [0.9, 0.8, 0.7])])
    assert perfect["average_precision"] == pytest.approx(1, abs=1e-9)
    assert perfect["average_precision_voc"] == pytest.approx(1, abs=1e-9)
    assert np.isnan(perfect["average_precision_large"])
    nothing = evaluate_scenes([scene(BOXES, [], [])])
    assert nothing["average_precision"] == nothing["average_precision_voc"] == 0


def test_voc_precision_is_the_area_under_all_points():
    # Of three objects: right, wrong, right. Precision 1 up to 1/3, then 2/3 up to 2/3.
    found = [BOXES[0], [60, 60, 70, 70], BOXES[1]]
    figures = evaluate_scenes([scene(BOXES, found, [0.9, 0.8, 0.7])])
    assert figures["class_ap_voc"][0] == pytest.approx(1 / 3 + 2 / 9)


def test_ignored_objects_are_neither_missed_nor_right():
    judged = scene(BOXES, BOXES[:2], [0.9, 0.8], ignored=[False, True, True])
    figures = evaluate_scenes([judged])
    assert figures["average_precision"] == pytest.approx(1)
    assert figures["support"].tolist() == [1]


def test_boxes_of_the_canvas_are_restored_to_the_photo():
    restored = restore_boxes(np.array([[10.0, 30, 20, 61]]), (60, 80), (120, 240))
    assert restored.tolist() == [[30, 60, 60, 120]]


# The task -----------------------------------------------------------------------------


@struct.dataclass
class Outputs:
    """A box around what is bright, moved by what is to be learnt."""

    boxes: jax.Array  # [N, 1, 4]

    def losses(self, targets):
        error = jnp.abs(self.boxes - targets.boxes[:, :1]).mean((1, 2))
        return {"box": jnp.where(targets.valid[:, 0], error, 0)}

    def predict(self):
        N = len(self.boxes)
        shape = (N, 1)
        valid = jnp.ones(shape, bool)
        return Detections(
            self.boxes, jnp.full(shape, 0.9), jnp.zeros(shape, jnp.int32), valid
        )


class Finder(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False, targets=None):
        assert train == (targets is not None)
        shift = self.param("shift", lambda _: jnp.full(4, 4.0))
        bright = x[..., 0] > 0.5
        sides = []
        for axis in (1, 2):  # columns, then rows
            line = jnp.any(bright, axis)
            n = line.shape[1]
            first = jnp.argmax(line, 1)
            last = n - jnp.argmax(line[:, ::-1], 1)
            sides.append((first, last))
        (x1, x2), (y1, y2) = sides
        boxes = jnp.stack([x1, y1, x2, y2], -1).astype(jnp.float32)
        return Outputs((boxes + shift[None])[:, None])


def make_split(count, seed):
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 24, 32, 3), np.uint8)
    boxes = []
    for image in images:
        x, y = rng.integers(0, 12, 2)
        w, h = rng.integers(6, 12, 2)
        image[y : y + h, x : x + w] = 255
        boxes.append(np.array([[x, y, x + w, y + h]]))
    return images, {"boxes": boxes, "classes": [np.zeros(1, int)] * count}


CONFIG = {
    "seed": 0,
    "num_epochs": 4,
    "batch_size": 4,
    "normalize": {"mean": (0.5,), "std": (0.5,)},
    "augment": {"flip_probability": 0.5},
    "schedule": {"name": "constant", "learning_rate": 2.0},
    "optimizer": {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0},
    "log": {"tensorboard": False, "every_steps": 1},
}


@pytest.fixture(scope="module")
def run():
    data = {"train": make_split(8, 0), "val": make_split(7, 1)}
    return build(CONFIG, data=data, model=Finder(), task=Detection(), devices=ONE)


def evaluate(run, shift):
    variables = {"params": {"shift": jnp.asarray(shift)}, "batch_stats": {}}
    return Evaluator(run, lambda: False).evaluate(variables, "val")


def test_an_evaluation_judges_every_image_of_a_split_once(run):
    summary = evaluate(run, [0.0, 0, 0, 0])
    assert summary["count"] == summary["support"][0] == 7
    assert summary["average_precision"] == pytest.approx(1)
    assert summary["loss"] == summary["box_loss"] == 0
    # 7 images in batches of 4: the padding is there and does not count.
    predictions = summary["predictions"]
    assert len(predictions.boxes) == 8
    assert len(list(scenes(predictions))) == 7
    worse = evaluate(run, [0.5, 0, 0.5, 0])
    assert 0.5 < worse["average_precision"] < 1
    assert worse["loss"] == pytest.approx(0.25)


@struct.dataclass
class Divided(Outputs):
    """Of a loss that is divided by what all replicas have of something."""

    axis_name: str | None = struct.field(pytree_node=False)

    def losses(self, targets):
        widths = targets.boxes[:, 0, 2] - targets.boxes[:, 0, 0]
        return {"box": per_image(targets.boxes.sum((1, 2)), widths, self.axis_name)}


class Divider(nn.Module):
    axis_name: str | None = None

    def __call__(self, x, *, train=False, targets=None):
        del train, targets
        return Divided(jnp.zeros((len(x), 1, 4)), self.axis_name)


def test_the_loss_of_an_evaluation_is_that_of_its_images_on_any_devices():
    source = Detection().make_source(*make_split(4, 0), "data")
    batch = {"image": source.images, **source.targets}
    batch |= {"mask": np.array([True, True, True, False])}
    one = make_eval_step(Divider(), Detection())
    sums, _ = jax.jit(one)({}, batch)
    over = make_eval_step(Divider("batch"), Detection(), axis_name="batch")
    parts = jax.tree.map(lambda v: v.reshape(2, 2, *v.shape[1:]), batch)
    mapped = jax.vmap(over, in_axes=(None, 0), axis_name="batch")
    replicas, _ = jax.jit(mapped)({}, parts)
    expected = [sums.losses["loss"]] * 2
    np.testing.assert_allclose(replicas.losses["loss"], expected, rtol=1e-6)


def test_training_moves_boxes_with_mirrored_images(run):
    *_, (_, state, metrics) = Trainer(run).train(run.init_state(), 0)
    # Were boxes not mirrored as the images are, left and right would not be learnt.
    assert float(metrics["loss"][-1]) < 0.6
    assert np.abs(np.asarray(state.params["shift"])).max() < 1.1


def test_the_weight_of_boxes_is_that_of_every_stage():
    """As of Cascade R-CNN, whose losses are numbered."""
    losses = {"rpn_box": 1.0, "box_1": 10.0, "classification_1": 100.0}

    class Cascade:
        def losses(self, targets):
            del targets
            return losses

    targets = dict.fromkeys(("boxes", "classes", "shown_size"))
    targets |= {key: np.zeros(1, bool) for key in ("valid", "ignored")}
    measured = Detection(box_weight=2.0).measure(Cascade(), targets)
    assert measured["loss"] == 122


def test_own_boxes_are_checked():
    images, targets = make_split(2, 0)
    outside = {**targets, "boxes": [np.array([[0, 0, 33, 5]]), *targets["boxes"][1:]]}
    for wrong, said in (
        (outside, "image 0: .* inside its 32 x 24 pixels"),
        ({**targets, "classes": targets["classes"][:1]}, "2 boxes and 1 classes"),
        (targets["boxes"], "a mapping of boxes and classes"),
    ):
        with pytest.raises(UserError, match=said):
            Detection().make_source(images, wrong, "data['train']")


@pytest.mark.parametrize(
    ("name", "box_loss", "said"),
    [
        ("mask_rcnn", None, "model.name='mask_rcnn': must be a detector of boxes"),
        ("faster_rcnn", "giou", "loss.box_loss='giou': must be None: faster_rcnn has"),
    ],
)
def test_what_the_task_cannot_train_is_refused_before_data(name, box_loss, said):
    config = {**CONFIG, "model": {"name": name, "backbone": "resnet10"}}
    config |= {"data": {"name": "no data"}, "task": "detection"}
    with pytest.raises(UserError, match=said):
        build({**config, "loss": {"box_loss": box_loss}}, devices=ONE)


def test_a_network_without_losses_is_refused():
    with pytest.raises(UserError, match="without losses and predict"):
        Detection().name_outputs(jnp.zeros(3), ("cat",))


# Words, pictures and files ------------------------------------------------------------


def predictions_of(boxes, classes, found, found_classes, scores):
    n = len(boxes)
    targets = {
        "boxes": np.array([boxes], np.float32),
        "classes": np.array([classes]),
        "valid": np.ones((1, n), bool),
        "ignored": np.zeros((1, n), bool),
        "areas": np.ones((1, n), np.float32),
        "shown_size": np.array([[80, 80]]),
        "image_size": np.array([[80, 80]]),
    }
    return Predictions(
        np.array([found], np.float32),
        np.array([scores], np.float32),
        np.array([found_classes]),
        np.array([len(found)]),
        targets,
        np.ones(1, bool),
    )


def test_confusion_knows_wrong_classes_misses_and_what_is_nothing():
    found = [BOXES[0], BOXES[1], [60, 60, 70, 70], BOXES[2]]
    scores = [0.9, 0.8, 0.7, 0.1]  # the last is too unsure to be shown
    predictions = predictions_of(BOXES, [0, 0, 1], found, [0, 1, 1, 1], scores)
    judged = judge(predictions, 0)
    assert judged.is_right.tolist() == [True, False, False]
    assert judged.is_missed.tolist() == [False, True, True]
    # Rows are what is there: 0, 1, background.
    assert confuse([judged], 2).tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_what_is_found_beside_a_photo_is_left_out(tmp_path):
    beside = [[90, 0, 99, 9], [70, 10, 99, 20]]  # the second one in part
    predictions = predictions_of(BOXES, [0, 0, 1], beside, [0, 1], [0.9, 0.8])
    (judged,) = scenes(predictions)
    assert judged.found_boxes.tolist() == [[70, 10, 80, 20]]
    assert (judged.found_scores, judged.found_classes) == (np.float32(0.8), 1)
    drawn = judge(predictions, 0)
    assert (drawn.found_boxes.tolist(), drawn.found_classes) == ([[70, 10, 80, 20]], 1)
    Image.new("RGB", (20, 40)).save(tmp_path / "a.png")
    source = ImageFiles((tmp_path / "a.png",), Canvas((100, 100, 3), scales_up=True))
    beside = np.array([[[60, 0, 90, 50], [40, 0, 90, 50]]], np.float32)
    scores, classes = np.array([[0.9, 0.8]]), np.array([[0, 1]])
    decision = Decision(beside, scores, classes, np.array([2]))
    (found,) = restored(decision, source)
    assert found is not None
    assert found.boxes.tolist() == [[16, 0, 20, 20]]
    assert (found.scores.tolist(), found.classes.tolist()) == ([0.8], [1])
    assert tell_predictions(decision, source, ("cat", "dog")) == ["1 dog"]


def test_a_table_has_a_line_for_a_class_that_is_not_there():
    figures = evaluate_scenes([scene(BOXES, BOXES, [0.9, 0.8, 0.7])])
    lines = class_table(figures, ("cat", "dog"))
    assert lines[1].split() == ["cat", "1.0000", "1.0000", "1.0000", "1.0000", "3"]
    assert lines[2].split() == ["dog", "-", "-", "-", "-", "0"]
    assert count_classes([1, 0, 1], ("cat", "dog")) == "2 dog, 1 cat"


def perfect_split():
    """A source of three images, and a decision that finds all but one object."""
    images, targets = make_split(3, 0)
    source = Detection().make_source(images, targets, "data")
    boxes = np.stack(targets["boxes"]).astype(np.float32)
    scores, classes = np.full((3, 1), 0.9, np.float32), np.zeros((3, 1), np.int32)
    return source, Decision(boxes, scores, classes, np.array([1, 0, 1]))


def test_an_assessment_says_average_precision_first_and_draws_it(run):
    source, decision = perfect_split()
    data = run.data.__class__("own", source, None, source, ("cell",), (24, 32, 3))
    assessed = assess(lambda _: decision, data, "test")
    assert assessed.summary["count"] == 3
    # Two of three at full precision: of the 101 recalls those up to 2/3.
    assert assessed.summary["average_precision"] == pytest.approx(67 / 101)
    text = format_assessment(assessed, ("cell",), {"split": "test"})
    assert text.splitlines()[0] == "average_precision 0.6634"
    drawn = draw_results(assessed.summary, source, ("cell",))
    assert set(drawn) == {
        "detections", "precision_recall", "confusion_matrix", "misses",
    }  # fmt: skip


def test_an_assessment_holds_few_photos_at_once():
    source, decision = perfect_split()
    photos, alive = [], []

    class Reading:
        def __len__(self):
            return len(source)

        def __getitem__(self, i):
            alive.append(sum(photo() is not None for photo in photos))
            image = source[i]["image"].copy()
            photos.append(weakref.ref(image))
            return {**source[i], "image": image}

    data = Data("own", Reading(), None, Reading(), ("cell",), (24, 32, 3))
    assess(lambda _: decision, data, "test")
    assert len(photos) == 3
    assert max(alive) <= 1


def test_predictions_are_files_in_the_pixels_of_the_photos(tmp_path):
    photo = np.zeros((60, 40, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.jpg")
    canvas = Canvas((30, 30, 3))  # which shows half of each side
    source = ImageFiles((tmp_path / "a.jpg",), canvas)
    found = Decision(
        np.array([[[5, 10, 15, 20], [0, 0, 20, 30]]], np.float32),
        np.array([[0.9, 0.2]], np.float32),
        np.array([[1, 0]], np.int32),
        np.array([2]),
    )
    names = ("cat", "dog")
    out = tmp_path / "out"
    write_predictions(out, ["a.jpg"], found, names, source, names=True)
    content = json.loads((out / "detections.json").read_text())
    assert content["images"] == [
        {"id": 1, "file_name": "a.jpg", "height": 60, "width": 40}
    ]
    first, second = content["annotations"]
    assert first["bbox"] == [10, 20, 20, 20]
    assert (first["category_id"], first["id"], first["area"]) == (2, 1, 400)
    assert second["bbox"] == [0, 0, 40, 60]
    table = (out / "detections.csv").read_text().splitlines()
    rows = list(csv.DictReader(table))
    assert rows[0] == {
        "ID": "a.jpg", "Label": "dog", "Score": "0.90000",
        "x1": "10.0", "y1": "20.0", "x2": "30.0", "y2": "40.0",
    }  # fmt: skip
    drawn = np.asarray(Image.open(out / "photos/a.png"))
    assert drawn.shape == photo.shape
    assert drawn[39, 10:30].any(1).all()  # the lower side of the box
    assert not drawn[59].any()  # the other is too unsure to be drawn
    assert tell_predictions(found, source, names) == ["1 dog"]


def tiny_retinanet(epochs, **changes):
    return {
        **CONFIG,
        "num_epochs": epochs,
        "task": "detection",
        "model": {
            "name": "retinanet", "backbone": "resnet10", "widths": (4, 8, 8, 8),
            "fpn_features": 8, "anchor_base": 1.0, "score_threshold": 0.0,
        },
        "optimizer": {"name": "adamw", "weight_decay": 0.01, "clip_norm": 1.0},
        "schedule": {"name": "constant", "learning_rate": 0.01},
        **changes,
    }  # fmt: skip


@pytest.mark.full
def test_retinanet_trains_tests_and_predicts_from_a_folder(tmp_path, capsys):
    images, targets = make_split(8, 0)
    for i, (image, boxes) in enumerate(zip(images, targets["boxes"], strict=True)):
        split = ("train", "train", "train", "val")[i % 4]
        for kind in ("images", "labels"):
            (tmp_path / "data" / split / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"data/{split}/images/{i}.png")
        x1, y1, x2, y2 = boxes[0] / [32, 24, 32, 24]
        line = f"0 {(x1 + x2) / 2} {(y1 + y2) / 2} {x2 - x1} {y2 - y1}"
        (tmp_path / f"data/{split}/labels/{i}.txt").write_text(line)
    data = {"name": "detection_folder", "path": str(tmp_path / "data")}
    data |= {"canvas_size": (48, 64), "val_fraction": 0.4, "max_boxes": 4}
    workdir = tmp_path / "run"
    config = tiny_retinanet(2, data=data, batch_size=2)
    results = train_and_evaluate(config, workdir, devices=ONE)
    assert 0 < results["test_average_precision"] < 1
    assert results["best_val_average_precision"] is not None
    assert (workdir / "precision_recall.png").exists()
    assert "AP small" in (workdir / "report.txt").read_text()
    main(["evaluate", "--workdir", str(workdir), "--batch-size", "2"])
    told = capsys.readouterr().out
    assert told.startswith(f"average_precision {results['test_average_precision']:.4f}")
    folder = str(tmp_path / "data/val/images")
    out = str(tmp_path / "out")
    main(["predict", "--workdir", str(workdir), "--data", folder, "--out", out])
    assert (
        len(json.loads((tmp_path / "out" / "detections.json").read_text())["images"])
        == 2
    )


@pytest.mark.slow
@pytest.mark.skipif("JAXATTN_BCCD" not in os.environ, reason="needs BCCD's folder")
def test_four_photos_of_bccd_are_learnt_by_heart(tmp_path):
    path = os.environ["JAXATTN_BCCD"]
    whole = {"canvas_size": (240, 320), "max_boxes": 40, "val_fraction": 0.0}
    data = load_data("detection_folder", path=path, **whole)
    assert [len(s) for s in data.splits.values()] == [205, 87, 72]
    four = take(data.train, np.arange(4))
    arrays = [four[i] for i in range(4)]
    targets = {k: np.stack([e[k] for e in arrays]) for k in arrays[0]}
    four = ArraySource(targets.pop("image"), targets)
    data = data.__class__(
        "four", four, None, four, data.class_names, data.image_shape, is_canvas=True
    )
    config = tiny_retinanet(
        300,
        model={
            "name": "retinanet", "backbone": "resnet18", "fpn_features": 64,
            "anchor_base": 2.0,
        },
        augment={},
        schedule={"name": "cosine", "learning_rate": 1e-3, "warmup_epochs": 10.0},
    )  # fmt: skip
    run = build(config, data=data, devices=ONE)
    results = train_and_evaluate(run, tmp_path)
    assert results["test_average_precision_50"] >= 0.95


@pytest.mark.full
def test_detectors_of_two_stages_are_given_what_they_draw_from():
    data = {"train": make_split(4, 0), "val": make_split(3, 1)}
    model = {
        "name": "faster_rcnn", "backbone": "resnet10", "widths": (4, 8, 8, 8),
        "fpn_features": 8, "hidden": 8, "anchor_base": 2.0, "roi_samples": 16,
        "rpn_samples": 16, "proposals_before": (20, 20), "proposals_after": (20, 20),
        "score_threshold": 0.0,
    }  # fmt: skip
    run = build(tiny_retinanet(1, model=model), data=data, devices=ONE)
    *_, (_, state, metrics) = Trainer(run).train(run.init_state(), 0)
    assert np.isfinite(metrics["loss"]).all()
    assert {"objectness_loss", "rpn_box_loss", "box_loss"} <= set(metrics)
    summary = Evaluator(run, lambda: False).evaluate(state.variables, "val")
    assert 0 < summary["average_precision"] < 1
    assert "loss" not in summary
