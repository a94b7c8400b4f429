"""Evaluation of a split: every example counts once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxattn.data.augment import Augment
from jaxattn.data.pipeline import Batch, Slice
from jaxattn.tasks.task import Task
from jaxattn.training.devices.mesh import Fetch
from jaxattn.training.run import Run


class Evaluator:
    """Evaluates weights on the splits of a run.

    Attributes:
        stores: What the loader of each split keeps on the devices.
    """

    def __init__(self, run: Run, is_stopped: Callable[[], bool]) -> None:
        self._run = run
        self._is_stopped = is_stopped
        parallel = run.parallel
        self.stores = {k: parallel.replicate(v.store) for k, v in run.loaders.items()}
        # Fetching is compiled apart, for stores differ in size: so one compilation of
        # the network serves all splits.
        self._fetch = {
            split: parallel.compile_fetch(loader.fetch)
            for split, loader in run.loaders.items()
        }
        self._draw = None
        if run.augment.validation and "val" in run.loaders:
            fetch = _transformed(run.loaders["val"].fetch, run.augment, run.task)
            self._fetch["val"] = parallel.compile_fetch(fetch)
            H, W, _ = run.data.image_shape
            draw = functools.partial(
                run.augment.draw, n=run.options.batch_size, height=H, width=W
            )
            self._draw = jax.jit(lambda key: draw(key).images)
        self._evaluate = parallel.compile_evaluate(run.eval_step)

    def evaluate(
        self,
        variables: Any,
        split: str,
        key: jax.Array | None = None,
        *,
        tell: Callable[[int], None] = lambda _: None,
    ) -> dict[str, Any] | None:
        """Returns the task's summary of a split, or None if it was stopped midway.

        Among them is `predictions`: those for the examples of the split, in its order,
        and behind them what completes the last batch.

        Args:
            variables: As the parallel runner holds them.
            split: "train", "val" or "test".
            key: PRNG key of this evaluation, for a run that transforms its validation
                images.
            tell: Called now and then with the number of examples that are done.
        """
        run, total, parts = self._run, None, []
        fetch, store = self._fetch[split], self.stores[split]
        feeds = run.loaders[split].evaluation_feeds(run.options.batch_size)
        for number, feed in enumerate(feeds):
            if self._is_stopped():
                return None
            if self._draw and split == "val":
                assert key is not None
                drawn = self._draw(jax.random.fold_in(key, number))
                feed = {**feed, "drawn": self._own_part(drawn)}
            batch = fetch(store, run.parallel.place(feed))
            sums, predictions = self._evaluate(variables, batch)
            # One batch runs and one is ready; more would pile up on the device.
            jax.block_until_ready(total)
            parts[-1:] = jax.device_get(parts[-1:])
            parts.append(predictions)
            tell(number * run.options.batch_size)
            total = sums if total is None else total + sums
        assert total is not None  # no split is empty
        parts = jax.device_get(parts)
        predictions = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return {**run.task.summarize(total, predictions), "predictions": predictions}

    @staticmethod
    def _own_part(drawn: Any) -> Any:
        """What was drawn for this process's part of the batch, on the host."""
        part = Slice(jax.process_index(), jax.process_count())
        return jax.tree.map(part.take, jax.device_get(drawn))


def _transformed(fetch: Fetch, augment: Augment, task: Task) -> Fetch:
    """Fetches examples transformed by what the feed says was drawn for them."""

    def fetch_transformed(store: Batch, feed: dict[str, Any]) -> Batch:
        feed = dict(feed)
        drawn = feed.pop("drawn")
        return augment.apply_to_batch(fetch(store, feed), task.target_kinds, drawn)

    return fetch_transformed
