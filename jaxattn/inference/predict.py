"""Predicts with a trained network: views on the device, decisions on the host.

Batches are padded to one shape, so that the network is compiled once, whatever the
number of images and views.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxattn.config.bind import DTYPES
from jaxattn.data.pipeline import Slice, evaluation_order, make_loader
from jaxattn.data.source import ArraySource, Source
from jaxattn.errors import choose, require, require_seed, require_type
from jaxattn.inference.freezing import compile_network
from jaxattn.tasks.task import Method, View
from jaxattn.training.checkpoints.trained import Trained
from jaxattn.training.devices.mesh import Devices, MeshParallel


def make_answer(
    trained: Trained, *, dtype: str | None = None, probabilities: bool = False
) -> Callable[[Any, jax.Array], Any]:
    """Returns a pure function of variables and uint8 images `[N, H, W, C]`.

    It returns what the task answers: of a classifier probabilities, float32
    `[N, classes]`; of a segmentation label maps.

    Args:
        trained: The network; its own variables are not used.
        dtype: Computation dtype, "float32" or "bfloat16"; None keeps the run's.
        probabilities: Those of all classes in any case; see `Task.answer`.

    Raises:
        UserError: If the network cannot have the dtype.
    """
    model = network_of(trained, dtype)

    def answer(variables: Any, images: jax.Array) -> Any:
        x = trained.preprocess.normalize(images)
        outputs = model.apply(variables, x, train=False)
        return trained.task.answer(outputs, probabilities=probabilities)

    return answer


def network_of(trained: Trained, dtype: str | None = None) -> nn.Module:
    """Returns a trained network in a computation dtype.

    Args:
        trained: The network.
        dtype: "float32" or "bfloat16"; None keeps the run's.

    Raises:
        UserError: If it is neither, or the network a user's own that has no attribute
            `dtype`.
    """
    if dtype is None:
        return trained.model
    choose("dtype", dtype, DTYPES)
    name, has_dtype = type(trained.model).__name__, hasattr(trained.model, "dtype")
    require("dtype", dtype, has_dtype, f"left out: {name} has no attribute dtype")
    return trained.model.clone(dtype=DTYPES[dtype])


Join = Callable[[Sequence[Any]], Any]


class Predictor:
    """A trained network on its devices, which keeps what was compiled.

    Args:
        trained: The network.
        batch_size: Images at a time, over all devices; by default the task's.
        devices: All of this process by default.
        dtype: Computation dtype, "float32" or "bfloat16"; None keeps the run's.
        fold_batch_norm: Folds batch normalisation into the convolutions; see
            `jaxattn.inference.freezing`.
        tell: Called with what goes on, where it may take long.

    Raises:
        UserError: If `batch_size` is below 1, or the network cannot have the dtype.
    """

    def __init__(
        self,
        trained: Trained,
        *,
        batch_size: int | None = None,
        devices: Devices | None = None,
        dtype: str | None = None,
        fold_batch_norm: bool = True,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        require_type("trained", trained, Trained)
        if batch_size is None:
            batch_size = trained.task.predict_batch_size
        require_type("batch_size", batch_size, int)
        require("batch_size", batch_size, batch_size >= 1, "at least 1")
        self.trained = trained
        self._batch_size = batch_size
        self._tell = tell
        self._parallel = MeshParallel(devices or jax.local_devices())
        model = network_of(trained, dtype)
        # Compiled apart from the views: once, not once for each.
        self._network = compile_network(
            functools.partial(model.apply, train=False),
            trained.variables,
            fold_batch_norm=fold_batch_norm,
            place=self._parallel.replicate,
        )

        def network_input(view: View, images: jax.Array, drawn: Any) -> jax.Array:
            return trained.preprocess.normalize(view.apply(images, drawn))

        self._network_input = jax.jit(network_input, static_argnums=0)

    def predict(
        self, source: Source | np.ndarray, method: Method, *, seed: int = 0
    ) -> Any:
        """Predicts of every image of a source.

        Args:
            source: Images, their targets unused, or an array uint8 `[N, H, W, C]`.
            method: Which views to look at, and how to decide.
            seed: Of the random views. An image's views depend on the seed and on its
                place among the images, not on batches or devices.

        Returns:
            What the method decides, a tuple of arrays `[N, ...]` in the order of the
            source: of a classifier a `Decision`. It is made from NaN, or where there
            are bytes from 255 and of other integers from 0, for images that the source
            skips.

        Raises:
            UserError: If there is no image, or the method does not fit the network.
        """
        if isinstance(source, np.ndarray):
            source = ArraySource(source, {})
        join = getattr(method, "join", None)
        batches = self._run(source, method.views, join, seed)
        parts = list(map(method.decide, batches))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def outputs(
        self, source: Source, views: Sequence[View], *, seed: int = 0
    ) -> Iterator[np.ndarray]:
        """Yields the network's outputs `[V, n, ...]` of one batch after another.

        Args:
            source: Images, at least one.
            views: Transforms, V of them.
            seed: Of what the views draw.

        Raises:
            UserError: If there is no image.
        """
        return self._run(source, views, None, seed)

    def _run(
        self, source: Source, views: Sequence[View], join: Join | None, seed: int
    ) -> Iterator[Any]:
        """Yields `[n, ...]` of what joins the views' outputs, or these `[V, n, ...]`.

        Raises:
            UserError: If there is no image.
        """
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
        joined = jax.jit(join) if join else None
        running: list[tuple[Any, np.ndarray]] = []
        done = 0
        self._tell(f"compiling, then predicting {N:,} images")
        for (index, mask), feed in batches:
            images = fetch(store, parallel.place(feed))["image"]
            outputs = [
                self._apply(images, view, _take(own, index))
                for view, own in zip(views, drawn, strict=True)
            ]
            given = joined(outputs) if joined else outputs
            del outputs  # of every view, until the next batch has its own
            running.append((given, feed["mask"][: int(mask.sum())]))
            # One batch runs while the one before it is decided about.
            for finished, count in _finished(running, 1):
                done += count
                self._tell(f"predicting {done:,}/{N:,} images")
                yield finished
        yield from (finished for finished, _ in _finished(running, 0))

    def _apply(self, images: jax.Array, view: View, drawn: Any) -> jax.Array:
        """Returns the network's outputs `[n, ...]` for one view of a batch."""
        x = self._network_input(view, images, self._parallel.place(drawn))
        return self._network(x)


def _draw(
    views: Sequence[View], N: int, image_shape: tuple[int, int, int], seed: int
) -> list[Any]:
    """What each view draws for all N images, on the host."""
    require_seed("seed", seed)
    root, (H, W, _) = jax.random.key(seed), image_shape
    drawn = [
        view.draw(jax.random.fold_in(root, i), N, H, W).images
        for i, view in enumerate(views)
    ]
    return jax.device_get(drawn)


def _take(drawn: Any, index: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], drawn)


def _finished(
    running: list[tuple[Any, np.ndarray]], left: int
) -> Iterator[tuple[Any, int]]:
    """Waits for all but the last `left` batches; yields them and their images.

    Without padding; of what views are not joined, with an axis for them before.
    """
    while len(running) > left:
        given, is_known = running.pop(0)
        n = len(is_known)
        if isinstance(given, list):
            yield _masked(np.stack(jax.device_get(given)), is_known, 1), n
        else:
            masked = functools.partial(_masked, is_known=is_known, axis=0)
            yield jax.tree.map(masked, given), n


def _masked(values: Any, is_known: np.ndarray, axis: int) -> np.ndarray:
    """Returns values without padding, and nothing for those that are not known."""
    values = np.asarray(values)
    values = values[(slice(None),) * axis + (slice(len(is_known)),)]
    known = is_known.reshape(-1, *[1] * (values.ndim - axis - 1))
    nothing = np.nan if values.dtype.kind == "f" else 0
    nothing = 255 if values.dtype == np.uint8 else nothing
    return np.where(known, values, values.dtype.type(nothing))
