"""The pictures of a classification run."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxattn import viz
from jaxattn.data.source import Example, Source
from jaxattn.tasks.classification.metrics import Predictions
from jaxattn.tasks.task import Pages, Summary

_NUM_MISTAKES = 24
_MOST_NAMED = 3  # classes in the title of a page


def draw_results(
    summary: Summary,
    source: Source,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Draws the figures of a finished run.

    Args:
        summary: Of the test, with its `predictions`.
        source: What was tested.
        class_names: The name of each class.

    Returns:
        Matplotlib figures by the name of their file.
    """
    drawn = {
        "confusion_matrix": viz.plot_confusion_matrix(
            summary["confusion"], class_names
        ),
        "class_accuracy": viz.plot_class_accuracy(
            summary["recall"], summary["support"], class_names
        ),
        "reliability": plot_reliability(summary),
    }
    images, titles = worst_mistakes(source, summary["predictions"], class_names)
    if titles:
        drawn["mistakes"] = viz.plot_images(images, titles)
    return drawn


def plot_reliability(summary: Summary) -> Any:
    """Draws how often the network is right, by how sure it is."""
    return viz.plot_reliability(
        summary["bin_confidence"], summary["bin_accuracy"], summary["bin_count"]
    )


def worst_mistakes(
    source: Source,
    predictions: Predictions,
    class_names: Sequence[str],
    count: int = _NUM_MISTAKES,
) -> tuple[np.ndarray, list[str]]:
    """Returns the wrongly classified images of which the network was surest.

    Args:
        source: Images, and their true labels.
        predictions: For each of them; padding may follow.
        class_names: The name of each label.
        count: Images at most.

    Returns:
        uint8 images `[n, H, W, C]`, the surest first, and as many titles.
    """
    wrong = np.flatnonzero(predictions.is_wrong)
    order = np.argsort(-np.asarray(predictions.confidence)[wrong], kind="stable")
    chosen = wrong[order][:count]
    examples = [source[int(i)] for i in chosen]
    titles = [
        f"{class_names[int(predictions.label[i])]} {predictions.confidence[i]:.0%}\n"
        f"true: {class_names[int(example['label'])]}"
        for i, example in zip(chosen, examples, strict=True)
    ]
    return np.array([example["image"] for example in examples]), titles


def make_pages(model: nn.Module, class_names: Sequence[str]) -> Pages:
    """Returns what draws pages of Grad-CAM and gates.

    Args:
        model: The network.
        class_names: The name of each logit.
    """
    attend = viz.make_attend(model)

    def draw(
        variables: Any,
        x: jax.Array,
        images: np.ndarray,
        names: Sequence[str],
        examples: Sequence[Example],
        pattern: str | None = None,
    ) -> Sequence[Any]:
        attention = attend(variables, x)
        titles = [
            title_page(shares, name, example.get("label"), class_names)
            for shares, name, example in zip(
                attention.probabilities, names, examples, strict=True
            )
        ]
        return viz.plot_pages(attention, images, titles, pattern)

    return draw


def title_page(
    probabilities: np.ndarray,
    name: str,
    label: int | None,
    class_names: Sequence[str],
) -> str:
    """Returns the title of a page: what was predicted, and whether that is right.

    Args:
        probabilities: `[C]`.
        name: What the image is called.
        label: Its class; None if it is not known.
        class_names: The name of each class.
    """
    order = np.argsort(-probabilities, kind="stable")[:_MOST_NAMED]
    shorten = viz.shorten
    shares = (f"{shorten(class_names[int(i)])} {probabilities[i]:.1%}" for i in order)
    text = f"{shorten(name, 40)}\npredicted {', '.join(shares)}"
    if label is None:
        return text
    is_right = order[0] == label
    verdict = "right" if is_right else f"wrong, true: {shorten(class_names[label])}"
    return f"{text}: {verdict}"
