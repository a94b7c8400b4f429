"""BatchNorm's statistics, measured anew for the mean of checkpoints."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxattn.data.augment import Augment, normalize
from jaxattn.models.frozen import normalizing
from jaxattn.ops import BatchNorm
from jaxattn.studies.average import make_statistics_steps
from jaxattn.tasks.classification.task import Classification
from jaxattn.training.freezing import Frozen
from jaxattn.training.state import Ema, create_state

KEPT: dict[str, np.ndarray] = {
    "mean": np.array([0.5, 0.2, 0.1], np.float32),
    "var": np.array([0.04, 0.09, 0.01], np.float32),
}


class Net(nn.Module):
    """A norm that may be frozen, before one that is not."""

    norm: str = "batch"

    @nn.compact
    def __call__(self, x, *, train):
        with normalizing(self.norm):
            x = BatchNorm(name="first")(x, train=train)
        return BatchNorm(name="second")(x, train=train).mean((1, 2))


def statistics(norm: str, frozen: Frozen) -> tuple[Any, list[np.ndarray]]:
    """Those of two batches, after other ones, and the batches."""
    model = Net(norm)
    state = create_state(model, optax.identity(), Ema(), 0, (4, 4, 3))
    stats = state.batch_stats
    stats["first"] = {**stats["first"], **KEPT}
    stats["second"] = jax.tree.map(lambda leaf: leaf + 7, stats["second"])
    state = state.replace(batch_stats=stats, opt_state=())
    reset, measure = make_statistics_steps(
        model,
        Classification(),
        augment=Augment(),
        normalize=lambda x: normalize(x, mean=(0.0,), std=(1.0,)),
        frozen=frozen,
    )
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (2, 4, 4, 3)).astype(np.uint8) for _ in range(2)]
    for step, number in ((reset, 0), (measure, 0), (measure, 1)):
        shown = jnp.asarray(images[number])
        state, _ = step(state, {"image": shown, "label": jnp.zeros(2, jnp.int32)})
    return state.batch_stats, [image / 255.0 for image in images]


@pytest.mark.parametrize(
    ("norm", "norms"), [("running", ()), ("frozen", ()), ("batch", (("first",),))]
)
def test_frozen_norms_keep_their_statistics_and_others_are_measured_behind(norm, norms):
    stats, batches = statistics(norm, Frozen(norms=frozenset(norms)))
    for key, value in KEPT.items():
        assert (np.asarray(stats["first"][key]) == value).all()
    shown = [(x - KEPT["mean"]) / np.sqrt(KEPT["var"] + 1e-5) for x in batches]
    means = np.mean([x.mean((0, 1, 2)) for x in shown], 0)
    variances = np.mean([x.var((0, 1, 2), ddof=1) for x in shown], 0)
    np.testing.assert_allclose(stats["second"]["mean"], means, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["second"]["var"], variances, rtol=1e-4)


def test_statistics_are_means_over_batches_whatever_they_were_before():
    stats, batches = statistics("batch", Frozen())
    means = np.mean([x.mean((0, 1, 2)) for x in batches], 0)
    np.testing.assert_allclose(stats["first"]["mean"], means, rtol=1e-4)
    np.testing.assert_allclose(stats["second"]["mean"], np.zeros(3), atol=1e-5)
