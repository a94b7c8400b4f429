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
from jaxattn.data.source import spread
from jaxattn.training.records.writer import history
from jaxattn.training.run import Run

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
    rates = [row for row in metrics if row.get("step/learning_rate") is not None]
    metric = run.task.metric
    others = [key for key in run.task.shown[1:] if key != metric]
    drawn = {
        "history": viz.plot_history(history(metrics), metric, others),
        "learning_rate": viz.plot_learning_rate(
            np.array([row["step"] for row in rates]),
            np.array([row["step/learning_rate"] for row in rates]),
        ),
        **run.task.draw(tested, run.data),
    }
    layer, kernel = first_kernel(run.model, params, run.data.image_shape)
    if kernel is not None:
        drawn["filters"] = viz.plot_filters(kernel, layer)
    return drawn


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
    plot_pages = run.task.make_pages(run.model, run.data.class_names)

    def draw(variables: Any) -> dict[str, np.ndarray]:
        # From the host to one device: other processes do not take part.
        x = run.preprocess.normalize(images)
        pages = plot_pages(jax.device_get(variables), x, images, names, examples)
        return {
            f"view/attention_maps/{i}": viz.figure_to_array(page)
            for i, page in zip(indices, pages, strict=True)
        }

    return draw
