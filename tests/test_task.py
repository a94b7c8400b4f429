"""The seam: a task that is no classification, on the same trainer."""

import dataclasses
import json
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
import smoke

from jaxattn.data.source import ArraySource
from jaxattn.errors import UserError
from jaxattn.tasks.classification import Classification
from jaxattn.tasks.registry import make_task
from jaxattn.training import Trainer, build, load_trained, train_and_evaluate
from jaxattn.training.records.writer import read_metrics

CONFIG = {
    "seed": 3,
    "num_epochs": 4,
    "batch_size": 8,
    "normalize": {"mean": (0.5,), "std": (0.5,)},
    "schedule": {"name": "constant", "learning_rate": 0.2},
    "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0},
    "log": {"tensorboard": False, "every_steps": 1},
}
ONE = smoke.one_device()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Brightness:
    """Tells the mean intensity of an image: one number, by its squared error."""

    metric: ClassVar[str] = "closeness"
    shown: ClassVar[tuple[str, ...]] = ("loss",)
    target_kinds: ClassVar[dict[str, str]] = {"mean": "number"}

    def make_source(self, images, targets, key):
        del key
        return ArraySource(images, {"mean": np.asarray(targets, np.float32)})

    def find_class_names(self, source):
        del source
        return ("brightness",)

    def name_outputs(self, outputs, class_names):
        assert outputs.shape == (2, 1)
        return class_names

    def name_target(self, example, class_names):
        return f"{class_names[0]} {example['mean']:.2f}"

    def weigh(self, targets):
        del targets
        return {}

    def inputs(self, x, targets):
        del x, targets
        return {}

    def measure(self, outputs, targets):
        return {"loss": (outputs[:, 0] - targets["mean"]) ** 2}

    def evaluate(self, outputs, targets, mask):
        error = self.measure(outputs, targets)["loss"]
        sums = jnp.stack([jnp.sum(mask), jnp.sum(jnp.where(mask, error, 0))])
        return sums, outputs[:, 0]

    def summarize(self, sums, predictions):
        del predictions
        count, error = np.asarray(sums)
        loss = float(error / count)
        return {"count": int(count), "loss": loss, "closeness": -loss}

    def describe(self, figures):
        return [f"error {figures['loss']:.4f}"]

    def results(self, tested):
        return {
            "test_closeness": tested.summaries["best"]["closeness"],
            "best_val_closeness": tested.best_figure,
        }

    def headline(self, summary):
        return f"error {summary['loss']:.4f}"

    def report(self, summary, class_names):
        return [f"{class_names[0]}: error {summary['loss']:.4f}"]

    def draw(self, summary, data):
        del summary, data
        return {}


class Mean(nn.Module):
    """A linear function of the mean intensity."""

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        return nn.Dense(1)(jnp.mean(x, (1, 2, 3))[:, None])


def make_arrays(count, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 6, 6, 3), np.uint8)
    images //= rng.integers(1, 8, (count, 1, 1, 1), np.uint8)
    return images, images.mean((1, 2, 3)) / 255


DATA = {
    "train": make_arrays(30, 0),
    "val": make_arrays(11, 1),
    "test": make_arrays(13, 2),
}


def make_run(task=Brightness(), **changes):
    config = {**CONFIG, **changes}
    return build(config, data=DATA, model=Mean(), task=task, devices=ONE)


def test_another_task_trains_tests_and_reports(tmp_path):
    results = train_and_evaluate(make_run(), tmp_path)
    assert results["test_closeness"] > -1e-3
    assert results["num_examples"] == {"train": 30, "val": 11, "test": 13}
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["model"] == "Mean"
    assert "test_accuracy" not in saved
    assert "brightness: error" in (tmp_path / "report.txt").read_text()
    trained = load_trained(tmp_path, model=Mean(), task=Brightness())
    x = trained.preprocess.normalize(DATA["test"][0])
    told = trained.model.apply(trained.variables, x)[:, 0]
    closeness = -np.mean((told - DATA["test"][1]) ** 2)
    np.testing.assert_allclose(closeness, results["test_closeness"], rtol=1e-4)


def test_best_weights_are_those_of_the_tasks_figure(tmp_path):
    results = train_and_evaluate(make_run(), tmp_path)
    rows = read_metrics(tmp_path)
    figures = [r["epoch/val_loss"] for r in rows if "epoch/val_loss" in r]
    assert len(figures) == 4
    assert results["best_val_closeness"] == pytest.approx(-min(figures), rel=1e-6)


def test_a_trainers_loop_is_the_runs_own(tmp_path):
    """Step by step and with a workdir, to the same bits."""
    trainer = Trainer(make_run())
    losses = [float(x) for u in trainer.train() for x in u.metrics["loss"]]
    train_and_evaluate(make_run(), tmp_path)
    rows = read_metrics(tmp_path)
    assert losses == [row["step/loss"] for row in rows if "step/loss" in row]


class Located(Brightness):
    """With a target that moves with the pixels."""

    target_kinds: ClassVar[dict[str, str]] = {"mean": "boxes"}


def test_transforms_that_leave_targets_wrong_are_refused():
    crop, colours = ({"augment": {k: 1}} for k in ("crop_padding_px", "brightness"))
    with pytest.raises(UserError, match="augment: crop does not move boxes along"):
        make_run(task=Located(), **crop)
    make_run(task=Located(), **colours)  # moves no pixel
    make_run(**crop)
    validation = {"augment": {"validation": True, "flip_probability": 0.5}}
    with pytest.raises(UserError, match=r"augment\.validation=True: must be False for"):
        make_run(task=Located(), **validation)


def test_a_task_is_named_with_its_keywords():
    assert make_task("classification", {"label_smoothing": 0.1}) == Classification(
        label_smoothing=0.1
    )
    with pytest.raises(UserError, match=r"task='detect': .*classification"):
        make_task("detect", {})
    with pytest.raises(UserError, match=r"loss\.smoothing: Classification takes no"):
        make_task("classification", {"smoothing": 0.1})
