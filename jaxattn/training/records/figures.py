"""The pictures of a run. A machine without Matplotlib or Pillow trains without them."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxattn import viz
from jaxattn.config.bind import bind
from jaxattn.data.augment import normalize
from jaxattn.data.source import Source
from jaxattn.tasks.classification.metrics import Predictions
from jaxattn.training.records.writer import history
from jaxattn.training.run import Run
from jaxattn.viz.attention_maps import make_attend

_NUM_MISTAKES = 24
_NUM_ATTENTION_MAPS = 4

_logger = logging.getLogger(__name__)


@functools.cache  # says it once
def load_plots() -> ModuleType | None:
    """Returns `jaxattn.viz`; None, after one line, without what it needs."""
    try:
        import jaxattn.viz.figure  # noqa: F401 - Matplotlib and Pillow
    except ModuleNotFoundError as error:
        _logger.warning("pictures are off: %s", error)
        return None
    return viz


def draw_results(
    run: Run,
    metrics: Sequence[Mapping[str, Any]],
    params: Any,
    tested: Mapping[str, Any],
) -> dict[str, Any]:
    """Draws the figures of a finished run; call it if `load_plots` returned it.

    Args:
        run: The run.
        metrics: Rows of its `metrics.jsonl`.
        params: Of the weights that were tested.
        tested: What `Evaluator.evaluate` returned for them on the test split.

    Returns:
        Matplotlib figures by the name of their file.
    """
    names = run.data.class_names
    rates = [row for row in metrics if row.get("step/learning_rate") is not None]
    drawn = {
        "history": viz.plot_history(history(metrics), "accuracy"),
        "learning_rate": viz.plot_learning_rate(
            np.array([row["step"] for row in rates]),
            np.array([row["step/learning_rate"] for row in rates]),
        ),
        "confusion_matrix": viz.plot_confusion_matrix(tested["confusion"], names),
        "class_accuracy": viz.plot_class_accuracy(
            tested["recall"], tested["support"], names
        ),
        "reliability": viz.plot_reliability(
            tested["bin_confidence"], tested["bin_accuracy"], tested["bin_count"]
        ),
    }
    layer, kernel = first_kernel(run.model, params, run.data.image_shape)
    if kernel is not None:
        drawn["filters"] = viz.plot_filters(kernel, layer)
    images, titles = worst_mistakes(run.data.test, tested["predictions"], names)
    if titles:
        drawn["mistakes"] = viz.plot_images(images, titles)
    return drawn


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


def first_kernel(
    model: nn.Module, params: Any, image_shape: tuple[int, int, int]
) -> tuple[str, np.ndarray | None]:
    """Returns the name and the kernel `[K, K, C, O]` of the first convolution.

    The first that the network calls; None if it has no convolution.

    Args:
        model: The network.
        params: Its parameters.
        image_shape: `(H, W, C)` of its images.
    """
    called: list[tuple[str, ...]] = []

    def record(
        call: Callable[..., Any], args: Any, kwargs: Any, context: Any
    ) -> jax.Array:
        called.append(context.module.path)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        # A function of its own: one that JAX has traced before would not be called.
        init = functools.partial(model.init, jax.random.key(0))
        jax.eval_shape(init, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    flat: dict[Any, Any] = traverse_util.flatten_dict(params)
    for path in called:
        kernel = flat.get((*path, "kernel"))
        if kernel is not None and kernel.ndim == 4:
            return "/".join(path), np.asarray(jax.device_get(kernel))
    return "", None


def make_attention_maps(run: Run) -> Callable[[Any], dict[str, np.ndarray]] | None:
    """Returns a function from variables to pictures by their TensorBoard tag.

    The images are the same at every call: some of the validation split, or of the test
    split if there is none.

    Args:
        run: The run.

    Returns:
        The function; None if the run's log does not want them, or cannot have them.
    """
    if not (run.log.attention_maps and run.log.tensorboard and load_plots()):
        return None
    source = run.data.test if run.data.val is None else run.data.val
    indices = spread(len(source), _NUM_ATTENTION_MAPS)
    examples = [source[i] for i in indices]
    images = np.stack([example["image"] for example in examples])
    names = [f"image {i}" for i in indices]
    labels = [int(example["label"]) for example in examples]
    as_input = bind(normalize, run.config["normalize"], "normalize")
    attend = make_attend(run.model)

    def draw(variables: Any) -> dict[str, np.ndarray]:
        # From the host to one device: other processes do not take part.
        attention = attend(jax.device_get(variables), as_input(images))
        pages = viz.plot_pages(attention, images, names, labels, run.data.class_names)
        return {
            f"attention_maps/{i}": viz.figure_to_array(page)
            for i, page in zip(indices, pages, strict=True)
        }

    return draw


def spread(length: int, count: int) -> list[int]:
    """Returns at most `count` indices from all over a sequence, in its order."""
    return [int(i) for i in np.linspace(0, length - 1, min(count, length)).round()]
