"""The seam between the trainer and what is learnt.

The trainer, the loaders and the prediction know a task by this protocol alone. They
move trees of arrays: the *targets* of a batch are all its entries but "image" and
"mask", and what they mean is the task's. A task owns losses and figures; the network
owns neither.

Everything that a task measures is one value per example, so that the train step can mix
and average, and a sum over examples, so that an evaluation counts each once.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import flax.linen as nn
import jax
import numpy as np
from jax.typing import DTypeLike

from jaxattn.data.augment import ALL_TARGETS, Augment, Draws
from jaxattn.data.source import Data, Example, Source
from jaxattn.errors import UserError, require
from jaxattn.viz.palette import Colors

Targets = Mapping[str, jax.Array]
Figures = Mapping[str, float]
Summary = Mapping[str, Any]
Predict = Callable[[Source], Any]
Pages = Callable[..., Sequence[Any]]
"""From variables, inputs, images, their names, examples and a pattern to figures."""


class Tested(NamedTuple):
    """What the test of a run came to, for its report.

    Attributes:
        summaries: Of the weights "last", "best" and, if the run keeps an average,
            "best_ema".
        best_figure: `Task.metric` of the weights "best" on the validation split; None
            without one.
    """

    summaries: Mapping[str, Summary]
    best_figure: float | None


class View(Protocol):
    """A way to look at an image: of an `Augment`, its transforms."""

    def draw(self, key: jax.Array, n: int, height: int, width: int) -> Draws:
        """Draws what it needs for n images; see `Augment.draw`."""
        ...

    def apply(self, images: jax.Array, drawn: Any) -> jax.Array:
        """Returns the view of images uint8 `[N, H, W, C]`, in 0..255."""
        ...


class Method(Protocol):
    """Views of an image, and what the network's outputs for them decide.

    One with a function `join` makes of the outputs, on the device, what alone goes to
    the host: from V arrays `[N, ...]` to the `[N, ...]` of which it decides.
    """

    @property
    def views(self) -> Sequence[View]:
        """The views, V of them; they can be hashed."""
        ...

    def decide(self, outputs: Any, /) -> Any:
        """Decides by the outputs `[V, N, ...]`: a tuple of arrays `[N, ...]`."""
        ...


class Task(Protocol):
    """What a network learns, and how that is judged.

    A task is a frozen dataclass whose fields are the config's section `loss`.
    """

    metric: ClassVar[str]
    """The figure of a summary by which weights are best; higher is better."""

    shown: ClassVar[Sequence[str]]
    """The values of `measure` that logs and epochs report, the loss first."""

    target_kinds: ClassVar[Mapping[str, str]]
    """What each target is, by its key: a "class", a "mask" (a label map) or "boxes".
    Transforms move masks and boxes along with the images; see `Transform.targets`."""

    plain: ClassVar[Method]
    """How a trained network predicts where nobody says otherwise."""

    written: ClassVar[str]
    """What predictions are written as: the end of a file's name, or of a folder's."""

    predict_batch_size: ClassVar[int]
    """Images at a time of predictions, where nobody says otherwise."""

    # The network and its data ---------------------------------------------------------

    def make_model(
        self,
        section: Mapping[str, Any],
        class_names: Sequence[str],
        *,
        dtype: DTypeLike | None,
        axis_name: str | None = None,
    ) -> nn.Module:
        """Returns the network of a config's section `model`, for data of some classes.

        Raises:
            UserError: If the section is wrong.
        """
        ...

    def make_source(self, images: np.ndarray, targets: Any, key: str) -> Source:
        """Returns a source of a user's own arrays.

        Args:
            images: uint8 `[N, H, W, C]`.
            targets: What is to be learnt of them, as the task says.
            key: What errors call them.

        Raises:
            UserError: If they do not fit each other, or the task.
        """
        ...

    def find_class_names(self, source: Source) -> tuple[str, ...]:
        """Returns names for the classes of a user's own arrays: their numbers."""
        ...

    def name_outputs(self, outputs: Any, class_names: Sequence[str]) -> tuple[str, ...]:
        """Returns the names of the classes that a user's own network tells apart.

        Args:
            outputs: Of the network, arrays or their shapes.
            class_names: The name of each class of the data.

        Raises:
            UserError: If the network does not fit the task and these classes.
        """
        ...

    def name_target(self, example: Example, class_names: Sequence[str]) -> str:
        """Returns what an example shows, in words, for titles of pictures."""
        ...

    # On the device --------------------------------------------------------------------

    def weigh(self, targets: Targets) -> Targets:
        """Returns what each example counts for in means over a batch, `[N]` by key.

        For values that are means over parts of examples, which have more or fewer of
        them. None, if every example counts as much. The step scales them to a mean of 1
        over the global batch, and adds them to the targets of `measure`.

        Args:
            targets: Of the batch, or of a part of it.
        """
        ...

    def inputs(self, x: jax.Array, targets: Targets) -> dict[str, Any]:
        """Returns what the network is given in training beside its input, by keyword.

        Args:
            x: Its input `[N, H, W, C]`.
            targets: Of the batch.
        """
        ...

    def measure(self, outputs: Any, targets: Targets) -> dict[str, jax.Array]:
        """Returns values `[N]`, one per example: the "loss", and what is shown beside.

        Args:
            outputs: Of the network in training.
            targets: Of the batch, the weights of `weigh` among them.
        """
        ...

    def evaluate(
        self, outputs: Any, targets: Targets, mask: jax.Array
    ) -> tuple[Any, Any]:
        """Returns sums over the examples that the mask keeps, and predictions.

        Args:
            outputs: Of the network in evaluation.
            targets: Of the batch; any valid ones where masked.
            mask: bool `[N]`, False for padding.

        Returns:
            A tree of sums that can be added with `+`, and a tree of arrays `[N, ...]`.
        """
        ...

    def answer(self, outputs: Any, *, probabilities: bool = False) -> Any:
        """Returns what an exported network answers, a tree of arrays `[N, ...]`.

        Args:
            outputs: Of the network.
            probabilities: Those of all classes, too, if it does not answer them anyway.
        """
        ...

    def tell_answer(self, *, probabilities: bool = False) -> str:
        """Returns what `answer` returns, in words."""
        ...

    # On the host ----------------------------------------------------------------------

    def summarize(self, sums: Any, predictions: Any) -> Summary:
        """Returns the figures of an evaluation: floats "loss", `metric` and more.

        Args:
            sums: Over the examples, to be divided once.
            predictions: Of all examples of the split, on the host, and behind them what
                completes the last batch: for figures that are of a split as a whole.
        """
        ...

    def describe(self, figures: Figures) -> list[str]:
        """Returns the shown figures as a person reads them, `["loss 0.123", ...]`."""
        ...

    def results(self, tested: Tested) -> dict[str, Any]:
        """Returns the entries of `results.json` that are the task's own."""
        ...

    def headline(self, summary: Summary) -> str:
        """Returns the outcome of a test in half a line."""
        ...

    def report(self, summary: Summary, class_names: Sequence[str]) -> list[str]:
        """Returns the lines of `report.txt` about a test."""
        ...

    def draw(self, summary: Summary, data: Data) -> dict[str, Any]:
        """Draws the figures of a test.

        Args:
            summary: Of the test, its "predictions" among the entries.
            data: Whose split "test" was tested.

        Returns:
            Matplotlib figures by the name of their file.
        """
        ...

    def make_pages(
        self,
        model: nn.Module,
        class_names: Sequence[str],
        *,
        of_class: str | None = None,
    ) -> Pages:
        """Returns what draws a page for each image: what the network attends to.

        Args:
            model: The network.
            class_names: The name of each class.
            of_class: That of which pages show the evidence; None: of the one predicted.

        Raises:
            UserError: If the task has no choice, or there is no such class.
        """
        ...

    # Trained networks -----------------------------------------------------------------

    def assess(self, predict: Predict, data: Data, split: str) -> Any:
        """Returns the figures of a trained network on a split, for `write_assessment`.

        Args:
            predict: From a source to what the network predicts of it.
            data: The data set.
            split: "test", "val" or "train"; the data set has it.
        """
        ...

    def write_assessment(
        self,
        folder: pathlib.Path,
        assessed: Any,
        class_names: Sequence[str],
        about: Mapping[str, Any],
    ) -> str:
        """Writes report, figures and `results.json` of an assessment.

        Args:
            folder: Where to; it is there.
            assessed: From `assess`.
            class_names: The name of each class.
            about: Further entries of `results.json`: what was assessed.

        Returns:
            The text of the report.
        """
        ...

    def tell_predictions(
        self, predicted: Any, source: Source, class_names: Sequence[str]
    ) -> list[str]:
        """Returns what was predicted of each image, in words.

        Args:
            predicted: Of N images.
            source: The images.
            class_names: The name of each class.
        """
        ...

    def write_predictions(
        self,
        path: pathlib.Path,
        ids: Sequence[int] | Sequence[str],
        predicted: Any,
        class_names: Sequence[str],
        *,
        source: Source,
        class_colors: Colors | None = None,
        names: bool = False,
        probabilities: bool = False,
    ) -> None:
        """Writes the file or the folder of predictions; each file whole or not at all.

        Args:
            path: The file or folder; the folder is made.
            ids: What each image is called, all numbers or all names.
            predicted: What was predicted of each.
            class_names: The name of each class.
            source: The images.
            class_colors: The colour of each class; None chooses.
            names: Writes names of classes in place of their numbers.
            probabilities: Writes how sure the network is of each class, too.

        Raises:
            UserError: If it cannot be written, or the task has not what is asked for.
        """
        ...


def require_task(task: Any) -> None:
    """Refuses an object that has not what a training asks of a task.

    Raises:
        UserError: If it lacks something.
    """
    own = ("metric", "shown", "target_kinds")
    wanted = (*own, "weigh", "inputs", "measure", "evaluate", "summarize")
    if lacking := [name for name in wanted if not hasattr(task, name)]:
        raise UserError(
            f"task: {type(task).__name__} has no {', '.join(lacking)}; must be a Task"
        )


def moved_targets(task: Task) -> frozenset[str]:
    """Returns which kinds of a task's targets move with the pixels of an image."""
    return ALL_TARGETS.intersection(task.target_kinds.values())


def refuse_transforms(task: Task, augment: Augment) -> None:
    """Refuses transforms of images that would leave a task's targets wrong.

    Raises:
        UserError: If there is one.
    """
    name = type(task).__name__
    # Mirrored photos would lie elsewhere on their canvas than what restores their boxes
    # knows.
    holds = not (augment.validation and "boxes" in moved_targets(task))
    require("augment.validation", augment.validation, holds, f"False for {name}")
    for transform in augment.running:
        if lacking := sorted(moved_targets(task) - transform.targets):
            raise UserError(
                f"augment: {transform.name} does not move {' and '.join(lacking)} along"
                f" with the images, as {name} needs; turn it off"
            )
