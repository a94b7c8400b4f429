"""The pictures of a classification run."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxattn import viz
from jaxattn.data.source import Source
from jaxattn.tasks.classification.metrics import Predictions
from jaxattn.tasks.task import Summary

_NUM_MISTAKES = 24
_NUM_ATTENTION_MAPS = 4


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


def make_attention_maps(
    model: nn.Module,
    normalize: Callable[[Any], jax.Array],
    source: Source,
    class_names: Sequence[str],
) -> Callable[[Any], dict[str, np.ndarray]]:
    """Returns a function from variables to pictures by their TensorBoard tag.

    The images are the same at every call, some from all over the source.

    Args:
        model: The network.
        normalize: From uint8 images to its input.
        source: Of the images.
        class_names: The name of each logit.
    """
    indices = spread(len(source), _NUM_ATTENTION_MAPS)
    examples = [source[i] for i in indices]
    images = np.stack([example["image"] for example in examples])
    names = [f"image {i}" for i in indices]
    labels = [int(example["label"]) for example in examples]
    attend = viz.make_attend(model)

    def draw(variables: Any) -> dict[str, np.ndarray]:
        # From the host to one device: other processes do not take part.
        attention = attend(jax.device_get(variables), normalize(images))
        pages = viz.plot_pages(attention, images, names, labels, class_names)
        return {
            f"view/attention_maps/{i}": viz.figure_to_array(page)
            for i, page in zip(indices, pages, strict=True)
        }

    return draw


def spread(length: int, count: int) -> list[int]:
    """Returns at most `count` indices from all over a sequence, in its order."""
    return [int(i) for i in np.linspace(0, length - 1, min(count, length)).round()]
