"""Evaluation of a split: every example counts once."""

from collections.abc import Callable
from typing import Any

import jax

from jaxattn.training.metrics import summarize
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
        self._evaluate = parallel.compile_evaluate(run.eval_step)

    def evaluate(self, variables: Any, split: str) -> dict[str, Any] | None:
        """Returns the figures of `summarize`, or None if it was stopped midway.

        Args:
            variables: As the parallel runner holds them.
            split: "train", "val" or "test".
        """
        run, total = self._run, None
        fetch, store = self._fetch[split], self.stores[split]
        for feed in run.loaders[split].evaluation_feeds(run.options.batch_size):
            if self._is_stopped():
                return None
            batch = fetch(store, run.parallel.place(feed))
            sums = self._evaluate(variables, batch)
            # One batch runs and one is ready; more would pile up on the device.
            jax.block_until_ready(total)
            total = sums if total is None else total + sums
        assert total is not None  # no split is empty
        return summarize(total)
