"""The pictures of a segmentation run."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxattn import viz
from jaxattn.data.source import Example, Source, spread
from jaxattn.tasks.segmentation.losses import one_hot
from jaxattn.tasks.segmentation.metrics import Predictions, predict
from jaxattn.tasks.segmentation.report import list_shares
from jaxattn.tasks.task import Pages, Summary
from jaxattn.viz.palette import Colors

_NUM_SHOWN = 6
_MOST_NAMED = 3  # classes in the title of a page


def draw_results(
    summary: Summary,
    source: Source,
    class_names: Sequence[str],
    class_colors: Colors | None,
) -> dict[str, Any]:
    """Draws the figures of a test.

    Args:
        summary: Of the test, with its `predictions`.
        source: What was tested.
        class_names: The name of each class.
        class_colors: The colour of each; None chooses.

    Returns:
        Matplotlib figures by the name of their file.
    """
    palette = viz.make_palette(class_colors)
    predictions: Predictions = summary["predictions"]
    chosen = {
        "overlays": spread(len(source), _NUM_SHOWN),
        "worst_images": find_worst(
            np.asarray(predictions.iou)[: len(source)], _NUM_SHOWN
        ),
    }
    drawn = {
        "confusion_matrix": viz.plot_confusion_matrix(
            summary["confusion"], class_names, of_pixels=True
        ),
        "class_iou": viz.plot_class_iou(
            summary["iou"], summary["support"], class_names
        ),
    }
    for name, indices in chosen.items():
        if indices:
            drawn[name] = _plot_examples(
                source, predictions, indices, class_names, palette
            )
    return drawn


def find_worst(iou: np.ndarray, count: int) -> list[int]:
    """Returns the images of lowest IoU, at most `count`, the worst first.

    Args:
        iou: Of each image; NaN, where all of one is ignored, is left out.
        count: Images at most.
    """
    order = np.argsort(iou, kind="stable")
    return [int(i) for i in order if not np.isnan(iou[i])][:count]


def _plot_examples(
    source: Source,
    predictions: Predictions,
    indices: Sequence[int],
    class_names: Sequence[str],
    palette: np.ndarray,
) -> Any:
    examples = [source[i] for i in indices]
    return viz.plot_overlays(
        [example["image"] for example in examples],
        {
            "truth": [np.asarray(example["label_map"]) for example in examples],
            "prediction": [np.asarray(predictions.label_map[i]) for i in indices],
        },
        [f"{i}: mean IoU {predictions.iou[i]:.1%}" for i in indices],
        class_names,
        palette,
    )


def make_pages(
    model: nn.Module, class_names: Sequence[str], chosen: int | None
) -> Pages:
    """Returns what draws pages of Grad-CAM and gates.

    Grad-CAM is of the summed logits of a class over the pixels for which it is
    predicted: Vinogradova et al., "Towards Interpretable Semantic Segmentation via
    Gradient-Weighted Class Activation Mapping", AAAI 2020, equation 1.

    Args:
        model: The network.
        class_names: The name of each logit.
        chosen: The class; None: the one that has most of an image.
    """

    def judge(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        predicted = one_hot(predict(logits), logits.shape[-1])
        shares = jnp.mean(predicted, (1, 2))
        largest = jnp.argmax(shares, -1)
        of = largest if chosen is None else jnp.full_like(largest, chosen)
        is_of = jnp.arange(logits.shape[-1])[None] == of[:, None]
        counted = predicted & is_of[:, None, None]
        return jnp.sum(jnp.where(counted, logits, 0), (1, 2, 3)), shares

    attend = viz.make_attend(model, judge)

    def draw(
        variables: Any,
        x: jax.Array,
        images: np.ndarray,
        names: Sequence[str],
        examples: Sequence[Example],
        pattern: str | None = None,
    ) -> Sequence[Any]:
        del examples
        attention = attend(variables, x)
        titles = [
            _title(shares, name, class_names, chosen)
            for shares, name in zip(attention.probabilities, names, strict=True)
        ]
        return viz.plot_pages(attention, images, titles, pattern)

    return draw


def _title(
    shares: np.ndarray, name: str, class_names: Sequence[str], chosen: int | None
) -> str:
    of = int(np.argmax(shares)) if chosen is None else chosen
    told = list_shares(shares, class_names, _MOST_NAMED)
    own = viz.shorten(class_names[of])
    lacking = "" if shares[of] else ", which is predicted nowhere"
    return f"{viz.shorten(name, 40)}\n{told}\nGrad-CAM of {own}{lacking}"
