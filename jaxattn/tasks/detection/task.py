"""Object detection, as a task of the trainer."""

import dataclasses
import inspect
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxattn.config.bind import bind
from jaxattn.data.boxes import Objects, pack
from jaxattn.data.source import ArraySource, Data, Example, Source
from jaxattn.errors import UserError, choose, require
from jaxattn.models.detection import BoxTargets
from jaxattn.models.registry import create_model
from jaxattn.models.retinanet import RetinaNet
from jaxattn.tasks.detection import figures, report
from jaxattn.tasks.detection.assessment import Assessment, assess, write_assessment
from jaxattn.tasks.detection.methods import Decision, Plain, find
from jaxattn.tasks.detection.metrics import (
    EvalSums,
    Predictions,
    evaluate_scenes,
    scenes,
)
from jaxattn.tasks.detection.predictions import tell_predictions, write_predictions
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

_BOX_LOSSES = ("l1", "smooth_l1", "giou")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
    """Boxes around objects, and their classes.

    The targets of an example are those of `jaxattn.data.boxes.BoxedImages`. The network
    is called with `targets=`, `BoxTargets`, in training. Its outputs have
    `losses(targets)`, losses by image, float32 `[N]` by name, and `predict()`, which
    returns `Detections` (`jaxattn.models.detection`). The loss is the sum of the
    weighted losses. Ignored objects are not learnt. Of detectors of two stages an
    evaluation has no loss: it is of what they drew to learn.

    Attributes:
        box_loss: Of RetinaNet: "l1", "smooth_l1" or "giou"; None is the network's own.
        box_weight: Of the losses of boxes.

    Raises:
        UserError: If a value is out of its range.
    """

    box_loss: str | None = None
    box_weight: float = 1.0

    metric: ClassVar[str] = "average_precision"
    shown: ClassVar[Sequence[str]] = ("loss",)
    target_kinds: ClassVar[Mapping[str, str]] = {
        "boxes": "boxes",
        "classes": "class",
        "ignored": "class",
        "areas": "class",
        "valid": "class",
        "image_size": "class",
        "shown_size": "class",
    }
    plain: ClassVar[Method] = Plain()
    written: ClassVar[str] = "detections"
    predict_batch_size: ClassVar[int] = 16

    def __post_init__(self) -> None:
        if self.box_loss is not None:
            choose("loss.box_loss", self.box_loss, _BOX_LOSSES)
        weight = self.box_weight
        require("loss.box_weight", weight, 0 < weight < np.inf, "above 0")

    # The network and its data ---------------------------------------------------------

    def make_model(
        self,
        section: Mapping[str, Any],
        class_names: Sequence[str],
        *,
        dtype: DTypeLike | None,
        axis_name: str | None = None,
    ) -> nn.Module:
        """Returns the network of the section `model`, for as many classes."""
        name = section.get("name")
        wanted = "a detector of boxes: the data have no masks yet"
        require("model.name", name, name != "mask_rcnn", wanted)
        make = bind(create_model, section, "model")
        model = make(num_classes=len(class_names), dtype=dtype, axis_name=axis_name)
        holds = self.box_loss is None or isinstance(model, RetinaNet)
        wanted = f"None: {name} has one kind alone"
        require("loss.box_loss", self.box_loss, holds, wanted)
        return model

    def make_source(self, images: np.ndarray, targets: Any, key: str) -> Source:
        """Returns a source of images and the boxes in them.

        Args:
            images: uint8 `[N, H, W, C]`.
            targets: A mapping from "boxes", N arrays `[g, 4]` (x1, y1, x2, y2, pixels),
                and "classes", N arrays of integers `[g]` from 0 on.
            key: What errors call them.
        """
        if not isinstance(targets, Mapping) or {"boxes", "classes"} - set(targets):
            raise UserError(f"{key}: targets must be a mapping of boxes and classes")
        size = images.shape[1:3]
        rows = [
            _objects(images, i, targets, key)
            for i in range(max(len(images), len(targets["boxes"])))
        ]
        most = max(1, *(len(row.boxes) for row in rows))
        packed = [pack(row, most) for row in rows]
        sizes = np.tile(np.array(size, np.int32), (len(images), 1))
        stacked = {name: np.stack([p[name] for p in packed]) for name in packed[0]}
        sized = {"image_size": sizes, "shown_size": sizes}
        return ArraySource(images, {**stacked, **sized})

    def find_class_names(self, source: Source) -> tuple[str, ...]:
        """Returns "0" to the largest class."""
        assert isinstance(source, ArraySource)
        return tuple(map(str, range(int(source.targets["classes"].max()) + 1)))

    def name_outputs(self, outputs: Any, class_names: Sequence[str]) -> tuple[str, ...]:
        """Returns the names of the classes, which a network does not number anew."""
        lacking = [n for n in ("losses", "predict") if not hasattr(outputs, n)]
        if lacking:
            raise UserError(
                f"model: its outputs are {type(outputs).__name__}, without"
                f" {' and '.join(lacking)}; must be those of a detector"
            )
        return tuple(class_names)

    def name_target(self, example: Example, class_names: Sequence[str]) -> str:
        """Returns how many objects of each class there are."""
        there = np.asarray(example["valid"])
        return report.count_classes(example["classes"][there], class_names)

    # On the device --------------------------------------------------------------------

    def weigh(self, targets: Targets) -> Targets:
        """Returns nothing: every example counts as much."""
        del targets
        return {}

    def inputs(self, x: jax.Array, targets: Targets) -> dict[str, Any]:
        """Returns the `targets`, from which detectors of two stages draw what to learn.

        All of the canvas counts as image, for what is drawn may lie anywhere on it.
        """
        sizes = jnp.tile(jnp.array([x.shape[1:3]], jnp.float32), (len(x), 1))
        given = _box_targets(targets)
        return {"targets": dataclasses.replace(given, image_sizes=sizes)}

    def measure(self, outputs: Any, targets: Targets) -> dict[str, jax.Array]:
        """Returns `loss` and its parts, such as `box_loss`, of each example."""
        own = {} if self.box_loss is None else {"box_loss": self.box_loss}
        accepted = inspect.signature(outputs.losses).parameters
        wanted = f"None: {type(outputs).__name__} has one kind alone"
        require("loss.box_loss", self.box_loss, own.keys() <= accepted.keys(), wanted)
        losses = outputs.losses(_box_targets(targets), **own)
        total = sum(self._weight(name) * value for name, value in losses.items())
        parts = {f"{name}_loss": value for name, value in losses.items()}
        return {"loss": jnp.asarray(total), **parts}

    def _weight(self, name: str) -> float:
        return self.box_weight if "box" in name.split("_") else 1.0

    def evaluate(
        self, outputs: Any, targets: Targets, mask: jax.Array
    ) -> tuple[EvalSums, Predictions]:
        """Returns summed losses, and what was found beside what is there."""

        def measure_one(outputs: Any, targets: Targets) -> dict[str, jax.Array]:
            own, there = jax.tree.map(lambda v: v[None], (outputs, targets))
            return jax.tree.map(lambda v: v[0], self.measure(own, there))

        # One by one: a loss that the batch is divided by would count the padding.
        is_measured = not hasattr(outputs, "rpn")  # which drew nothing to learn
        losses = jax.vmap(measure_one)(outputs, dict(targets)) if is_measured else {}
        found = find(outputs)
        sums = EvalSums(
            count=jnp.sum(mask.astype(jnp.int32)),
            losses={k: jnp.sum(jnp.where(mask, v, 0)) for k, v in losses.items()},
        )
        counts = jnp.where(mask, found.counts, 0)
        own = {key: targets[key] for key in self.target_kinds}
        found = (found.boxes, found.scores, found.classes, counts)
        return sums, Predictions(*found, targets=own, mask=mask)

    def answer(self, outputs: Any, *, probabilities: bool = False) -> Any:
        """Returns `boxes`, `scores`, `classes` and `counts`, as of `Decision`."""
        wanted = "left out: a detector answers the scores of its boxes alone"
        require("--probabilities", probabilities, not probabilities, wanted)
        return find(outputs)._asdict()

    def tell_answer(self, *, probabilities: bool = False) -> str:
        """Returns what `answer` returns, in words."""
        del probabilities
        return (
            "a mapping: boxes: float32 [N, D, 4], x1, y1, x2, y2 in pixels of the"
            " image; scores: float32 [N, D], falling; classes: int32 [N, D], by number;"
            " counts: int32 [N], how many of the D there are"
        )

    # On the host ----------------------------------------------------------------------

    def summarize(self, sums: EvalSums, predictions: Predictions) -> Summary:
        """Returns mean losses, and the figures of `evaluate_scenes`."""
        count = int(sums.count)
        losses = {key: float(value) / count for key, value in sums.losses.items()}
        judged = list(scenes(predictions))
        return {"count": count, **losses, **evaluate_scenes(judged)}

    def describe(self, figures: Figures) -> list[str]:
        """Returns loss and AP as a person reads them."""
        return report.describe(figures)

    def results(self, tested: Tested) -> dict[str, Any]:
        """Returns COCO's numbers and more."""
        return report.results(tested)

    def headline(self, summary: Summary) -> str:
        """Returns AP in half a line."""
        return report.headline(summary)

    def report(self, summary: Summary, class_names: Sequence[str]) -> list[str]:
        """Returns COCO's numbers and a table of the classes."""
        return report.format_test(summary, class_names)

    def draw(self, summary: Summary, data: Data) -> dict[str, Any]:
        """Draws boxes over photos, precision by recall, confusion and mistakes."""
        return figures.draw_results(summary, data.test, data.class_names)

    def make_pages(
        self,
        model: nn.Module,
        class_names: Sequence[str],
        *,
        of_class: str | None = None,
    ) -> Pages:
        """Returns what draws pages of Grad-CAM of the surest box, and of gates."""
        if of_class is not None:
            choose("--class", of_class, class_names)
        chosen = None if of_class is None else list(class_names).index(of_class)
        return figures.make_pages(model, class_names, chosen)

    # Trained networks -----------------------------------------------------------------

    def assess(self, predict: Predict, data: Data, split: str) -> Assessment:
        """Returns COCO's numbers on a split."""
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
        """Returns how many objects of each class were found."""
        return tell_predictions(predicted, source, class_names)

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
        """Writes a folder: COCO's JSON, a table, and the photos with their boxes."""
        del class_colors
        wanted = "left out: a detector writes the scores of its boxes"
        require("--probabilities", probabilities, not probabilities, wanted)
        write_predictions(path, ids, predicted, class_names, source, names=names)


def _box_targets(targets: Targets) -> BoxTargets:
    """Returns targets as networks take them, without what is ignored."""
    return BoxTargets(
        boxes=targets["boxes"],
        labels=targets["classes"],
        valid=targets["valid"] & ~targets["ignored"],
        image_sizes=targets["shown_size"],
    )


def _objects(images: np.ndarray, i: int, targets: Any, key: str) -> Objects:
    """Returns a user's objects of image `i`, checked."""
    boxes, classes = (list(targets[name]) for name in ("boxes", "classes"))
    if not len(boxes) == len(classes) == len(images):
        raise UserError(
            f"{key}: {len(boxes)} boxes and {len(classes)} classes of {len(images)}"
            " images; must be as many"
        )
    own = np.asarray(boxes[i], np.float64).reshape(-1, 4)
    labels = np.asarray(classes[i], np.int32).reshape(-1)
    H, W = images.shape[1:3]
    holds = len(own) == len(labels) and (labels >= 0).all()
    holds = holds and (own[:, :2] < own[:, 2:]).all() and (own >= 0).all()
    if not (holds and (own[:, 2:] <= [W, H]).all()):
        raise UserError(
            f"{key}: image {i}: must have as many boxes x1 < x2, y1 < y2 inside its"
            f" {W} x {H} pixels as classes of at least 0"
        )
    sides = own[:, 2:] - own[:, :2]
    return Objects(own, labels, np.zeros(len(own), bool), sides.prod(1))
