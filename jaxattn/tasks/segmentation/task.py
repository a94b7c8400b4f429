"""Semantic segmentation, as a task of the trainer."""

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
from jaxattn.data.augment.transform import IGNORED
from jaxattn.data.source import ArraySource, Data, Example, Source
from jaxattn.errors import UserError, choose, require
from jaxattn.models.registry import create_model
from jaxattn.tasks.segmentation import figures, losses, metrics, report
from jaxattn.tasks.segmentation.assessment import (
    Assessment,
    assess,
    write_assessment,
)
from jaxattn.tasks.segmentation.methods import Decision, MultiView
from jaxattn.tasks.segmentation.predictions import restored, write_predictions
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

_MOST_CLASSES = IGNORED  # numbers that a byte has, but for one
_TINY = np.finfo(np.float32).tiny


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A class for each pixel, by cross entropy.

    The target of an example is its `label_map`, uint8 `[H, W]` with 255 where a pixel
    is ignored. The network's outputs are logits, float32 `[N, H, W, K]`; in training
    `(logits, auxiliary logits)` if it has an auxiliary head.

    The loss of a step is the mean over all pixels of the global batch that are not
    ignored, as torchvision's and transformers' is of one replica's: neither the number
    of devices nor `accumulate_steps` changes it (see `weigh`).

    Attributes:
        aux_weight: Of the loss of the auxiliary logits.
        avg_non_ignore: False divides by all pixels, ignored ones too, as mmseg does by
            default.
        class_weights: Of the pixels of each class; the mean is a weighted one, as in
            PyTorch's `CrossEntropyLoss`. By default all are 1.
        label_smoothing: Share of the uniform distribution in the target, in [0, 1).
        focal_gamma: Power of `1 - p` that each pixel's loss is multiplied by; 0 is
            cross entropy.
        dice_weight: Of the Dice loss that is added.
        ohem_threshold: Only pixels whose class is less likely than this have a loss,
            which is divided as without it; None keeps all.
        ohem_min_kept: Pixels of an image that are kept in any case.

    Raises:
        UserError: If a value is out of its range.
    """

    aux_weight: float = 0.4
    avg_non_ignore: bool = True
    class_weights: Sequence[float] | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    dice_weight: float = 0.0
    ohem_threshold: float | None = None
    ohem_min_kept: int = 100_000

    metric: ClassVar[str] = "mean_iou"
    shown: ClassVar[Sequence[str]] = ("loss", "pixel_accuracy")
    target_kinds: ClassVar[Mapping[str, str]] = {"label_map": "mask"}
    plain: ClassVar[Method] = MultiView()
    written: ClassVar[str] = "label_maps"
    predict_batch_size: ClassVar[int] = 16

    def __post_init__(self) -> None:
        for name in ("aux_weight", "focal_gamma", "dice_weight"):
            value = getattr(self, name)
            require(f"loss.{name}", value, 0 <= value < np.inf, "at least 0")
        share, threshold = self.label_smoothing, self.ohem_threshold
        require("loss.label_smoothing", share, 0 <= share < 1, "in [0, 1)")
        holds = threshold is None or 0 < threshold <= 1
        require("loss.ohem_threshold", threshold, holds, "None, or in (0, 1]")
        kept = self.ohem_min_kept
        require("loss.ohem_min_kept", kept, kept >= 0, "at least 0")
        if self.class_weights is not None:
            weights = tuple(self.class_weights)
            holds = (
                all(0 <= w < np.inf for w in weights) and max(weights, default=0) > 0
            )
            wanted = "None, or a number of at least 0 for each class, not all 0"
            require("loss.class_weights", weights, holds, wanted)
            # A record's are a list, which cannot be hashed.
            object.__setattr__(self, "class_weights", weights)

    # The network and its data ---------------------------------------------------------

    def make_model(
        self,
        section: Mapping[str, Any],
        class_names: Sequence[str],
        *,
        dtype: DTypeLike | None,
        axis_name: str | None = None,
    ) -> nn.Module:
        """Returns the network of the section `model`, with logits for each class."""
        if len(class_names) > 1:  # else the data are not known yet
            self._check_classes(len(class_names))
        make = bind(create_model, section, "model")
        return make(num_classes=len(class_names), dtype=dtype, axis_name=axis_name)

    def make_source(self, images: np.ndarray, targets: Any, key: str) -> Source:
        """Returns a source of images and their label maps.

        Args:
            images: uint8 `[N, H, W, C]`.
            targets: Integers `[N, H, W]`, classes from 0 on, 255 where ignored.
            key: What errors call them.
        """
        label_maps = np.asarray(targets)
        shape = images.shape[:3]
        if label_maps.dtype.kind not in "iu" or label_maps.shape != shape:
            raise UserError(
                f"{key}: label maps are {label_maps.dtype} {list(label_maps.shape)},"
                f" must be integers {list(shape)}, one for each pixel of the images"
            )
        low, high = int(label_maps.min()), int(label_maps.max())
        if low < 0 or high > IGNORED:
            raise UserError(
                f"{key}: has a class {low if low < 0 else high}, must be in [0,"
                f" {_MOST_CLASSES - 1}], or {IGNORED} where a pixel is ignored"
            )
        return ArraySource(images, {"label_map": label_maps.astype(np.uint8)})

    def find_class_names(self, source: Source) -> tuple[str, ...]:
        """Returns "0" to the largest class; "0" alone where all is ignored."""
        assert isinstance(source, ArraySource)
        label_maps = source.targets["label_map"]
        largest = np.max(label_maps, initial=0, where=label_maps != IGNORED)
        return tuple(str(i) for i in range(int(largest) + 1))

    def name_outputs(self, outputs: Any, class_names: Sequence[str]) -> tuple[str, ...]:
        """Returns a name for each logit; its number, where the data have no such class.

        Fewer logits than classes would leave some without, and not say why.
        """
        shape, count = getattr(outputs, "shape", ()), len(class_names)
        if len(shape) != 4 or not count <= shape[3] <= _MOST_CLASSES:
            kind = list(shape) if shape else type(outputs).__name__
            raise UserError(
                f"model: its outputs are {kind}, must be logits [N, H, W, K] of at"
                f" least the {count} classes of the data and at most {_MOST_CLASSES}"
            )
        self._check_classes(shape[3])
        return (*class_names, *map(str, range(count, shape[3])))

    def _check_classes(self, count: int) -> None:
        weights = self.class_weights
        holds = weights is None or len(weights) == count
        wanted = f"{count} numbers, as the network has classes"
        require("loss.class_weights", weights, holds, wanted)

    def name_target(self, example: Example, class_names: Sequence[str]) -> str:
        """Returns the two largest classes of the example's label map."""
        return report.shares(example["label_map"], class_names, 2)

    # On the device --------------------------------------------------------------------

    def weigh(self, targets: Targets) -> Targets:
        """Returns what the mean over the pixels of a batch weighs its examples by.

        The mean over pixels is no mean of the examples' means: those have different
        numbers of pixels that are not ignored. `measure` multiplies the mean of each
        with its weight, scaled to a mean of 1 over the global batch, so that the mean
        over examples is the one over pixels.

        Returns:
            `pixel_weight`, the pixels not ignored, and `loss_weight`, the sum of their
            weights; `[N]`.
        """
        label_map = targets["label_map"]
        weights = losses.pixel_weights(label_map, self.class_weights)
        if not self.avg_non_ignore:
            weights = jnp.ones_like(weights)
        pixels = losses.pixel_weights(label_map)
        return {
            "pixel_weight": jnp.sum(pixels, (1, 2)),
            "loss_weight": jnp.sum(weights, (1, 2)),
        }

    def measure(self, outputs: Any, targets: Targets) -> dict[str, jax.Array]:
        """Returns `loss` and `pixel_accuracy`, whose means are those of the pixels."""
        main, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = self._loss(main, targets)
        for logits in auxiliary:
            loss += self.aux_weight * self._loss(logits, targets)
        label_map = targets["label_map"]
        is_valid = label_map != IGNORED
        is_right = is_valid & (metrics.predict(main) == label_map)
        accuracy = jnp.sum(is_right, (1, 2)) / jnp.maximum(jnp.sum(is_valid, (1, 2)), 1)
        return {"loss": loss, "pixel_accuracy": targets["pixel_weight"] * accuracy}

    def _loss(self, logits: Any, targets: Targets) -> jax.Array:
        total, weight = self._sums(logits, targets["label_map"])
        loss = targets["loss_weight"] * total / jnp.maximum(weight, _TINY)
        if self.dice_weight:
            loss += self.dice_weight * losses.dice_loss(logits, targets["label_map"])
        return loss

    def _sums(
        self, logits: jax.Array, label_map: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the summed loss of each example, and what it is to be divided by."""
        loss = losses.cross_entropy(
            logits,
            label_map,
            label_smoothing=self.label_smoothing,
            focal_gamma=self.focal_gamma,
        )
        weights = losses.pixel_weights(label_map, self.class_weights)
        loss *= weights
        if self.ohem_threshold is not None:
            kept = losses.hard_pixels(
                logits, label_map, self.ohem_threshold, self.ohem_min_kept
            )
            loss = jnp.where(kept, loss, 0)
        weight = self.weigh({"label_map": label_map})["loss_weight"]
        return jnp.sum(loss, (1, 2)), weight

    def evaluate(
        self, outputs: jax.Array, targets: Targets, mask: jax.Array
    ) -> tuple[metrics.EvalSums, metrics.Predictions]:
        """Returns the sums and the predictions of a batch."""
        # Padding is ignored, and so counts nothing.
        label_map = jnp.where(mask[:, None, None], targets["label_map"], IGNORED)
        label_map = label_map.astype(jnp.uint8)
        predicted = metrics.predict(outputs)
        confusion = metrics.confusions(label_map, predicted, outputs.shape[-1])
        loss, weight = self._sums(outputs, label_map)
        dice = losses.dice_loss(outputs, label_map) if self.dice_weight else loss * 0
        sums = metrics.EvalSums(
            count=jnp.sum(mask.astype(jnp.int32)),
            confusion=metrics.Counts.of(jnp.sum(confusion, 0)),
            # `where`, for a product would let NaN of padding through.
            loss=jnp.sum(jnp.where(mask, loss, 0)),
            weight=jnp.sum(jnp.where(mask, weight, 0)),
            dice=jnp.sum(jnp.where(mask, dice, 0)),
        )
        return sums, metrics.Predictions(predicted, metrics.image_iou(confusion))

    def answer(self, outputs: jax.Array, *, probabilities: bool = False) -> Any:
        """Returns `label_map`, the likeliest class of each pixel, uint8 `[N, H, W]`.

        If wanted also `probabilities`, float32 `[N, H, W, K]`.
        """
        answered = {"label_map": metrics.predict(outputs)}
        if probabilities:
            softmax = jax.nn.softmax(outputs.astype(jnp.float32))
            answered["probabilities"] = softmax
        return answered

    def tell_answer(self, *, probabilities: bool = False) -> str:
        """Returns what `answer` returns, in words."""
        also = "; probabilities: float32 [N, H, W, classes]" if probabilities else ""
        return f"a mapping: label_map: uint8 [N, H, W], classes by number{also}"

    # On the host ----------------------------------------------------------------------

    def summarize(self, sums: metrics.EvalSums) -> Summary:
        """Returns the figures of `jaxattn.tasks.segmentation.metrics.summarize`."""
        return metrics.summarize(sums, dice_weight=self.dice_weight)

    def describe(self, figures: Figures) -> list[str]:
        """Returns loss and pixel accuracy as a person reads them."""
        return report.describe(figures)

    def results(self, tested: Tested) -> dict[str, Any]:
        """Returns the mean IoU and more."""
        return report.results(tested)

    def headline(self, summary: Summary) -> str:
        """Returns the mean IoU in half a line."""
        return report.headline(summary)

    def report(self, summary: Summary, class_names: Sequence[str]) -> list[str]:
        """Returns the figures of a test and a table of the classes."""
        return report.format_test(summary, class_names)

    def draw(self, summary: Summary, data: Data) -> dict[str, Any]:
        """Draws confusion, IoU by class, overlays, and the worst images."""
        names, colors = data.class_names, data.class_colors
        return figures.draw_results(summary, data.test, names, colors)

    def make_pages(
        self,
        model: nn.Module,
        class_names: Sequence[str],
        *,
        of_class: str | None = None,
    ) -> Pages:
        """Returns what draws pages of a class's Grad-CAM, and of gates."""
        if of_class is not None:
            choose("--class", of_class, class_names)
        chosen = None if of_class is None else list(class_names).index(of_class)
        return figures.make_pages(model, class_names, chosen)

    # Trained networks -----------------------------------------------------------------

    def assess(self, predict: Predict, data: Data, split: str) -> Assessment:
        """Returns the figures on a split."""
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
        """Returns the share of each class in each image."""
        return [
            "not known" if known is None else report.shares(known[1], class_names)
            for known in restored(predicted.label_map, source)
        ]

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
        """Writes a folder of label maps of the images' own sizes, and overlays."""
        del class_names, names
        wanted = "left out: a segmentation writes label maps"
        require("--probabilities", probabilities, not probabilities, wanted)
        write_predictions(path, ids, predicted.label_map, source, class_colors)
