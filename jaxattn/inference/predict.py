"""Classifies images with a trained network: views on the device, decisions on the host.

Batches are padded to one shape, so that the network is compiled once, whatever the
number of images and views.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxattn.data.augment import Augment
from jaxattn.data.pipeline import evaluation_order, make_loader
from jaxattn.data.source import ArraySource, Source
from jaxattn.errors import require
from jaxattn.inference.methods import Decision, Method
from jaxattn.inference.trained import Trained
from jaxattn.training.parallel import Devices, MeshParallel


def predict(
    trained: Trained,
    source: Source | np.ndarray,
    method: Method,
    *,
    seed: int = 0,
    batch_size: int = 256,
    devices: Devices | None = None,
) -> Decision:
    """Classifies every image of a source.

    Args:
        trained: The network.
        source: Images, their labels unused, or an array uint8 `[N, H, W, C]`.
        method: Which views to classify, and how to decide.
        seed: Of the random views. An image's views depend on the seed and on its place
            among the images, not on batches or devices.
        batch_size: Images at a time, over all devices.
        devices: All of this process by default.

    Returns:
        Labels and probabilities in the order of the source.

    Raises:
        UserError: If a value is out of its range or does not fit the network.
    """
    if isinstance(source, np.ndarray):
        source = ArraySource(source, np.zeros(len(source), np.int32))
    decisions = [
        method.decide(logits)
        for logits in view_logits(
            trained,
            source,
            method.views,
            seed=seed,
            batch_size=batch_size,
            devices=devices,
        )
    ]
    labels, probabilities = zip(*decisions, strict=True)
    return Decision(np.concatenate(labels), np.concatenate(probabilities))


def view_logits(
    trained: Trained,
    source: Source,
    views: Sequence[Augment],
    *,
    seed: int = 0,
    batch_size: int = 256,
    devices: Devices | None = None,
) -> Iterator[np.ndarray]:
    """Yields the logits float32 `[V, n, C]` of one batch after another.

    Args:
        trained: The network.
        source: Images, at least one.
        views: Transforms, V of them.
        seed: Of what the views draw.
        batch_size: Images at a time, over all devices.
        devices: All of this process by default.
    """
    import tqdm

    require("batch_size", batch_size, batch_size >= 1, "at least 1")
    N = len(source)
    require("source", N, N >= 1, "at least one image: there are no images")
    parallel = MeshParallel(devices or jax.local_devices())
    # No more padding than the devices need.
    n = parallel.num_devices
    size = -(-min(batch_size, N) // n) * n
    kind = "auto" if isinstance(source, ArraySource) else "streamed"
    loader = make_loader(source, loader=kind)
    fetch, store = (
        parallel.compile_fetch(loader.fetch),
        parallel.replicate(loader.store),
    )
    classify = _make_classifier(trained, views, parallel)
    drawn = _draw(views, N, trained.image_shape, seed)

    # `disable=None`: no bar where nobody looks.
    with tqdm.tqdm(total=N, unit="image", leave=False, disable=None) as bar:
        running: list[tuple[list[jax.Array], int]] = []
        batches = zip(
            evaluation_order(N, size), loader.evaluation_feeds(size), strict=True
        )
        for (index, mask), feed in batches:
            images = fetch(store, parallel.place(feed))["image"]
            own = [
                jax.tree.map(functools.partial(np.take, indices=index, axis=0), d)
                for d in drawn
            ]
            running.append((classify(images, own), int(mask.sum())))
            # One batch runs while the one before it is decided about.
            yield from _finished(running, 1, bar)
        yield from _finished(running, 0, bar)


def _make_classifier(
    trained: Trained, views: Sequence[Augment], parallel: MeshParallel
) -> Callable[[jax.Array, Sequence[Any]], list[jax.Array]]:
    """Returns `(images, what each view drew) -> V logits [n, C]`."""
    variables = parallel.replicate(trained.variables)
    # Compiled apart from the views: once, not V times.
    network = jax.jit(functools.partial(trained.model.apply, train=False))

    def network_input(view: Augment, images: jax.Array, drawn: Any) -> jax.Array:
        return trained.normalize(view.apply(images, drawn))

    inputs = [jax.jit(functools.partial(network_input, view)) for view in views]

    def classify(images: jax.Array, drawn: Sequence[Any]) -> list[jax.Array]:
        return [
            network(variables, make_input(images, parallel.place(own)))
            for make_input, own in zip(inputs, drawn, strict=True)
        ]

    return classify


def _draw(
    views: Sequence[Augment], N: int, image_shape: tuple[int, int, int], seed: int
) -> list[Any]:
    """What each view draws for all N images, on the host."""
    root, (H, W, _) = jax.random.key(seed), image_shape
    drawn = [
        view.draw(jax.random.fold_in(root, i), N, H, W).images
        for i, view in enumerate(views)
    ]
    return jax.device_get(drawn)


def _finished(
    running: list[tuple[list[jax.Array], int]], left: int, bar: Any
) -> Iterator[np.ndarray]:
    """Waits for all but the last `left` batches and yields them without padding."""
    while len(running) > left:
        logits, count = running.pop(0)
        yield np.stack(jax.device_get(logits))[:, :count]
        bar.update(count)
