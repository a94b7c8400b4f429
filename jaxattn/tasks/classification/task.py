"""Image classification, as a task of the trainer."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxattn.config.bind import bind
from jaxattn.data.source import Data, Example, Source, labelled
from jaxattn.data.splits import read_labels
from jaxattn.errors import UserError, require
from jaxattn.models.registry import create_model
from jaxattn.tasks.classification import figures, report
from jaxattn.tasks.classification.assessment import (
    Assessment,
    assess,
    write_assessment,
)
from jaxattn.tasks.classification.losses import cross_entropy, hits
from jaxattn.tasks.classification.methods import Decision, Plain
from jaxattn.tasks.classification.metrics import (
    EvalSums,
    Predictions,
    evaluation_sums,
    predict,
    summarize,
)
from jaxattn.tasks.classification.predictions import write_predictions
from jaxattn.tasks.task import (
    Figures,
    Method,
    Pages,
    Predict,
    Summary,
    Targets,
    Tested,
)
from jaxattn.viz.palette import Colors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """One class for each image, by cross entropy.

    The target of an example is its `label`, int32; the network's outputs are logits,
    float32 `[N, C]`.

    Attributes:
        label_smoothing: Share of the uniform distribution in the target, in [0, 1); in
            training and evaluation.
    """

    label_smoothing: float = 0.0

    metric: ClassVar[str] = "accuracy"
    shown: ClassVar[Sequence[str]] = ("loss", "accuracy")
    target_kinds: ClassVar[Mapping[str, str]] = {"label": "class"}
    plain: ClassVar[Method] = Plain()
    written: ClassVar[str] = "submission.csv"
    predict_batch_size: ClassVar[int] = 256

    def __post_init__(self) -> None:
        share = self.label_smoothing
        require("loss.label_smoothing", share, 0 <= share < 1, "in [0, 1)")

    # The network and its data ---------------------------------------------------------

    def make_model(
        self,
        section: Mapping[str, Any],
        class_names: Sequence[str],
        *,
        dtype: DTypeLike | None,
        axis_name: str | None = None,
    ) -> nn.Module:
        """Returns the network of the section `model`, with a logit for each class."""
        stages = section.get("out_stages")
        wanted = "left out: a classifier returns logits, not maps"
        require("model.out_stages", stages, stages is None, wanted)
        make = bind(create_model, section, "model")
        return make(num_classes=len(class_names), dtype=dtype, axis_name=axis_name)

    def make_source(self, images: np.ndarray, targets: Any, key: str) -> Source:
        """Returns a source of images and their labels, integers `[N]` from 0 on."""
        labels = np.asarray(targets)
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise UserError(
                f"{key}: labels are {labels.dtype} {list(labels.shape)}, must be"
                f" integers [{len(images)}], one for each image"
            )
        if len(labels) and labels.min() < 0:
            raise UserError(f"{key}: has a label {labels.min()}, must be at least 0")
        return labelled(images, labels.astype(np.int32))

    def find_class_names(self, source: Source) -> tuple[str, ...]:
        """Returns "0" to the largest label."""
        return tuple(str(i) for i in range(int(read_labels(source).max()) + 1))

    def name_outputs(self, outputs: Any, class_names: Sequence[str]) -> tuple[str, ...]:
        """Returns a name for each logit; its number, where the data have no such class.

        Fewer logits than classes would make the loss NaN, and not say why.
        """
        shape, count = getattr(outputs, "shape", ()), len(class_names)
        if len(shape) != 2 or shape[1] < count:
            kind = list(shape) if shape else type(outputs).__name__
            raise UserError(
                f"model: its outputs are {kind}, must be logits [N, C] of at least the"
                f" {count} classes of the data"
            )
        return (*class_names, *map(str, range(count, shape[1])))

    def name_target(self, example: Example, class_names: Sequence[str]) -> str:
        """Returns the name of the example's class."""
        return class_names[int(example["label"])]

    # On the device --------------------------------------------------------------------

    def weigh(self, targets: Targets) -> Targets:
        """Returns none: every image counts as much."""
        del targets
        return {}

    def measure(self, outputs: jax.Array, targets: Targets) -> dict[str, jax.Array]:
        """Returns `loss` and `accuracy` (1 or 0) of each example."""
        labels = targets["label"]
        smoothing = self.label_smoothing
        return {
            "loss": cross_entropy(outputs, labels, label_smoothing=smoothing),
            "accuracy": hits(outputs, labels),
        }

    def evaluate(
        self, outputs: jax.Array, targets: Targets, mask: jax.Array
    ) -> tuple[EvalSums, Predictions]:
        """Returns the sums and the predictions of a batch."""
        labels, smoothing = targets["label"], self.label_smoothing
        sums = evaluation_sums(outputs, labels, mask, label_smoothing=smoothing)
        return sums, predict(outputs, labels, mask)

    def answer(self, outputs: jax.Array, *, probabilities: bool = True) -> jax.Array:
        """Returns probabilities, float32 `[N, C]`, whether asked for or not."""
        del probabilities
        return jax.nn.softmax(jnp.asarray(outputs, jnp.float32))

    def tell_answer(self, *, probabilities: bool = True) -> str:
        """Returns what `answer` returns, in words."""
        del probabilities
        return "float32 [N, classes], probabilities"

    # On the host ----------------------------------------------------------------------

    def summarize(self, sums: EvalSums) -> Summary:
        """Returns the figures of `jaxattn.tasks.classification.metrics.summarize`."""
        return summarize(sums)

    def describe(self, figures: Figures) -> list[str]:
        """Returns loss and accuracy as a person reads them."""
        return [f"loss {figures['loss']:.3f}", f"acc {100 * figures['accuracy']:.1f}%"]

    def results(self, tested: Tested) -> dict[str, Any]:
        """Returns the accuracies and more."""
        return report.results(tested)

    def headline(self, summary: Summary) -> str:
        """Returns the accuracy in half a line."""
        return report.headline(summary)

    def report(self, summary: Summary, class_names: Sequence[str]) -> list[str]:
        """Returns the figures of a test and a table of the classes."""
        return report.format_test(summary, class_names)

    def draw(self, summary: Summary, data: Data) -> dict[str, Any]:
        """Draws confusion, accuracy by class, reliability and mistakes."""
        return figures.draw_results(summary, data.test, data.class_names)

    def make_pages(
        self,
        model: nn.Module,
        class_names: Sequence[str],
        *,
        of_class: str | None = None,
    ) -> Pages:
        """Returns what draws pages of Grad-CAM and gates."""
        wanted = "left out: a classifier's Grad-CAM is of the class predicted"
        require("--class", of_class, of_class is None, wanted)
        return figures.make_pages(model, class_names)

    # Trained networks -----------------------------------------------------------------

    def assess(self, predict: Predict, data: Data, split: str) -> Assessment:
        """Returns the figures on a split, its calibration among them."""
        return assess(predict, data, split)

    def write_assessment(
        self,
        folder: pathlib.Path,
        assessed: Assessment,
        class_names: Sequence[str],
        about: Mapping[str, Any],
    ) -> str:
        """Writes report, figures and `results.json`; returns the report's text."""
        return write_assessment(folder, assessed, class_names, about)

    def tell_predictions(
        self, predicted: Decision, source: Source, class_names: Sequence[str]
    ) -> list[str]:
        """Returns the classes that are likeliest, and how likely they are."""
        del source
        return [report.likeliest(row, class_names) for row in predicted.probabilities]

    def write_predictions(
        self,
        path: pathlib.Path,
        ids: Sequence[int] | Sequence[str],
        predicted: Decision,
        class_names: Sequence[str],
        *,
        source: Source,
        class_colors: Colors | None = None,
        names: bool = False,
        probabilities: bool = False,
    ) -> None:
        """Writes a CSV file with the columns `ID,Labels`; skipped images have none."""
        del source, class_colors
        write_predictions(
            path,
            ids,
            predicted.labels,
            class_names=class_names if names else None,
            probabilities=predicted.probabilities if probabilities else None,
            probability_columns=class_names,
            is_known=np.isfinite(predicted.probabilities[:, 0]),
        )
