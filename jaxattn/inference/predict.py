"""Classifies images with a trained network: views on the device, decisions on the host.

Batches are padded to one shape, so that the network is compiled once, whatever the
number of images and views.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxattn.data.augment import Augment
from jaxattn.data.pipeline import Slice, evaluation_order, make_loader
from jaxattn.data.source import ArraySource, Source, labelled
from jaxattn.errors import require
from jaxattn.tasks.classification.methods import Decision, Method
from jaxattn.training.checkpoints.trained import Trained
from jaxattn.training.devices.mesh import Devices, MeshParallel


def make_classifier(
    trained: Trained, *, dtype: DTypeLike | None = None
) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns a pure function of variables and uint8 images `[N, H, W, C]`.

    It returns probabilities, float32 `[N, classes]`.

    Args:
        trained: The network; its own variables are not used.
        dtype: Computation dtype; None keeps the run's.
    """
    model = trained.model if dtype is None else trained.model.clone(dtype=dtype)

    def classify(variables: Any, images: jax.Array) -> jax.Array:
        logits = model.apply(variables, trained.normalize(images), train=False)
        return jax.nn.softmax(jnp.asarray(logits, jnp.float32))

    return classify


class Predictor:
    """A trained network on its devices, which keeps what was compiled.

    Args:
        trained: The network.
        batch_size: Images at a time, over all devices.
        devices: All of this process by default.

    Raises:
        UserError: If `batch_size` is below 1.
    """

    def __init__(
        self,
        trained: Trained,
        *,
        batch_size: int = 256,
        devices: Devices | None = None,
    ) -> None:
        require("batch_size", batch_size, batch_size >= 1, "at least 1")
        self.trained = trained
        self._batch_size = batch_size
        self._parallel = MeshParallel(devices or jax.local_devices())
        self._variables = self._parallel.replicate(trained.variables)
        # Compiled apart from the views: once, not once for each.
        self._network = jax.jit(functools.partial(trained.model.apply, train=False))

        def network_input(view: Augment, images: jax.Array, drawn: Any) -> jax.Array:
            return trained.normalize(view.apply(images, drawn))

        self._network_input = jax.jit(network_input, static_argnums=0)

    def predict(
        self, source: Source | np.ndarray, method: Method, *, seed: int = 0
    ) -> Decision:
        """Classifies every image of a source.

        Args:
            source: Images, their labels unused, or an array uint8 `[N, H, W, C]`.
            method: Which views to classify, and how to decide.
            seed: Of the random views. An image's views depend on the seed and on its
                place among the images, not on batches or devices.

        Returns:
            Labels and probabilities in the order of the source. Of images that it
            skips the probabilities are NaN and the labels mean nothing.

        Raises:
            UserError: If there is no image, or the method does not fit the network.
        """
        if isinstance(source, np.ndarray):
            source = labelled(source, np.zeros(len(source), np.int32))
        batches = self.logits(source, method.views, seed=seed)
        labels, probabilities = zip(*map(method.decide, batches), strict=True)
        return Decision(np.concatenate(labels), np.concatenate(probabilities))

    def logits(
        self, source: Source, views: Sequence[Augment], *, seed: int = 0
    ) -> Iterator[np.ndarray]:
        """Yields the logits float32 `[V, n, C]` of one batch after another.

        Args:
            source: Images, at least one.
            views: Transforms, V of them.
            seed: Of what the views draw.

        Raises:
            UserError: If there is no image.
        """
        import tqdm

        N, parallel = len(source), self._parallel
        require("source", N, N >= 1, "at least one image: there are no images")
        # No more padding than the devices need.
        devices = parallel.num_devices
        size = -(-min(self._batch_size, N) // devices) * devices
        kind = "auto" if isinstance(source, ArraySource) else "streamed"
        # All of every batch: processes of a job predict each for itself.
        loader = make_loader(source, Slice(), loader=kind)
        fetch = parallel.compile_fetch(loader.fetch)
        store = parallel.replicate(loader.store)
        drawn = _draw(views, N, self.trained.image_shape, seed)
        batches = zip(
            evaluation_order(N, size), loader.evaluation_feeds(size), strict=True
        )
        running: list[tuple[list[jax.Array], np.ndarray]] = []
        # `disable=None`: no bar where nobody looks.
        with tqdm.tqdm(total=N, unit="image", leave=False, disable=None) as bar:
            for (index, mask), feed in batches:
                images = fetch(store, parallel.place(feed))["image"]
                logits = [
                    self._classify(images, view, _take(own, index))
                    for view, own in zip(views, drawn, strict=True)
                ]
                running.append((logits, feed["mask"][: int(mask.sum())]))
                # One batch runs while the one before it is decided about.
                yield from _finished(running, 1, bar)
            yield from _finished(running, 0, bar)

    def _classify(self, images: jax.Array, view: Augment, drawn: Any) -> jax.Array:
        """Returns the logits `[n, C]` of one view of a batch."""
        x = self._network_input(view, images, self._parallel.place(drawn))
        return self._network(self._variables, x)


def _draw(
    views: Sequence[Augment], N: int, image_shape: tuple[int, int, int], seed: int
) -> list[Any]:
    """What each view draws for all N images, on the host."""
    require("seed", seed, 0 <= seed < 2**63, "in [0, 2**63)")
    root, (H, W, _) = jax.random.key(seed), image_shape
    drawn = [
        view.draw(jax.random.fold_in(root, i), N, H, W).images
        for i, view in enumerate(views)
    ]
    return jax.device_get(drawn)


def _take(drawn: Any, index: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], drawn)


def _finished(
    running: list[tuple[list[jax.Array], np.ndarray]], left: int, bar: Any
) -> Iterator[np.ndarray]:
    """Waits for all but the last `left` batches and yields them without padding."""
    while len(running) > left:
        logits, is_known = running.pop(0)
        own = np.stack(jax.device_get(logits))[:, : len(is_known)]
        yield np.where(is_known[:, None], own, np.nan)
        bar.update(len(is_known))
