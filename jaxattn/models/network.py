"""What all networks share: a map after every stage, and a head behind the last.

A network says how it makes its maps (`_stages`, a generator, which Flax must not wrap:
`nn.nowrap`), and what it makes of the last one (`_head`). Whether maps are returned,
and those of which stages, is the same in all.
"""

import abc
import contextlib
import itertools
from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from jaxattn.errors import UserError, choose, require
from jaxattn.models.frozen import NORMS, normalizing, stopped
from jaxattn.ops.inputs import as_feature_map


class Network(nn.Module, abc.ABC, kw_only=True):
    """A network for images.

    Attributes:
        in_channels: Channels of the images; None takes those of the images that `init`
            is given. Images of another number are refused.
        out_stages: Returns the maps of these stages, counted from 1, instead of logits.
            Later stages and the head are neither computed nor have parameters.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
        norm: One of `jaxattn.models.frozen.NORMS`, of the network's own BatchNorm.
        frozen_stages: So many stages, and what comes before the first, have no
            gradient and normalise by their running statistics.
    """

    in_channels: int | None = None
    out_stages: Sequence[int] | None = None
    dtype: DTypeLike | None = None
    axis_name: str | None = None
    norm: str = "batch"
    frozen_stages: int = 0

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, return_features: bool = False
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Classifies images, or returns their feature maps.

        Args:
            x: Normalised images `[N, H, W, C]`, of a size that the network takes.
            train: Selects batch statistics in BatchNorm, and what the network draws:
                dropout and stochastic depth (rng stream "dropout"), and forcing in SCC
                ("forcing").
            return_features: Returns the map of every stage, as `out_stages` does.

        Returns:
            float32 logits `[N, num_classes]`, where `num_classes` is 0 what the last
            layer would be given, float32 `[N, C']`: the pooled features; or maps
            `[N, H', W', C']` in `dtype`, by stage.

        Raises:
            ValueError: If the images, or an attribute, are not accepted.
        """
        x = as_feature_map(self, x)
        C, wanted = x.shape[-1], self.in_channels
        require("in_channels", wanted, wanted in (None, C), f"{C}, as of the images")
        if self.out_stages is not None:
            return self._chosen_maps(x, train)
        if return_features:
            return tuple(self._maps(x, train))
        self._check_size(x)
        *_, last = self._maps(x, train)
        return self._head(last, train)

    def _chosen_maps(self, x: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        wanted = tuple(self.out_stages or ())
        stages = self._maps(x, train)
        # A generator: what comes after the last stage that is wanted does not run.
        maps = [*itertools.islice(stages, max([0, *wanted]))]
        if not wanted or min(wanted) < 1 or max(wanted) > len(maps):
            count = len([*maps, *stages])
            raise UserError(f"out_stages={wanted}: must be some of 1 to {count}")
        return tuple(maps[i - 1] for i in wanted)

    @nn.nowrap
    def _maps(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        """Yields the stages' maps, made as `norm` and `frozen_stages` say."""
        choose("norm", self.norm, NORMS)
        stages = self._stages(x, train)
        for i in itertools.count(1):
            frozen = stopped() if i <= self.frozen_stages else contextlib.nullcontext()
            with normalizing(self.norm), frozen:
                x_or_end = next(stages, None)
            if x_or_end is None:
                return
            yield x_or_end

    def _check_size(self, x: jax.Array) -> None:
        """Refuses images of a size that the head cannot take."""

    @nn.nowrap
    @abc.abstractmethod
    def _stages(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        """Yields the map after each stage; computes a stage when it is asked for it."""

    @abc.abstractmethod
    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the logits of the last stage's map."""
