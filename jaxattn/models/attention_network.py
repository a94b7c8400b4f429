"""Networks whose blocks may have an attention module."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from jaxattn.errors import UserError, choose, require
from jaxattn.models.network import Network
from jaxattn.models.slots import PLACES, AttentionFactory, Slot, find_slot


class AttentionNetwork(Network, kw_only=True):
    """A network with an attention module in every block, if wanted.

    Attributes:
        attention: The module: a name of `list_attention()`; or a factory, which is a
            callable that takes `name=`, such as a module class, and whose module is
            called with `train=`; or a `Slot`, which says the place, too.
        attention_kwargs: Keywords of the attention module, or of the factory.
        attention_stages: Stages whose blocks have it, counted from 1; 0 is the stem
            (and MobileNetV2's first block). None: where its authors have it, mostly
            everywhere.
        attention_place: One of `PLACES` (see `Slot`). None: where its authors have it;
            of a factory "after".
        attention_init: "identity" lets the network start as the one without attention,
            for weights of such a network; see `Slot.init`. None: as its authors start.
    """

    attention: str | Slot | AttentionFactory | None = None
    attention_kwargs: Mapping[str, Any] | None = None
    attention_stages: Sequence[int] | None = None
    attention_place: str | None = None
    attention_init: str | None = None

    def _slots(self, first_side: int, num_stages: int = 4) -> tuple[Slot, ...]:
        """Returns the slots of what comes before the first stage, and of every stage.

        Args:
            first_side: Of the first stage's map of an image of the stem's usual size.
            num_stages: The number of stages, each of which halves the map of the last.
        """
        slot, kwargs = self._slot(), dict(self.attention_kwargs or {})
        if slot.factory is None:
            return (slot,) * (1 + num_stages)
        if self.axis_name is not None and _takes(slot.factory, "axis_name"):
            kwargs = {"axis_name": self.axis_name} | kwargs
        chosen = _chosen_stages(slot, self.attention_stages, num_stages)
        sides = [first_side >> max(0, i - 1) for i in range(1 + num_stages)]
        slots = []
        for i, side in enumerate(sides):
            known = {"window_size": sides[-1], "dct_size": (side, side)}
            own = _with_kwargs(slot, _of_stage(slot, kwargs, i, num_stages), known)
            # What else a slot says holds for the whole network.
            slots.append(own if i in chosen else dataclasses.replace(own, factory=None))
        return tuple(slots)

    def _slot(self) -> Slot:
        """Returns the slot of the whole network, at the place that it is told."""
        slot = find_slot(self.attention, type(self).__name__)
        if slot.factory is None:
            self._refuse_keywords()
            return slot
        if self.attention_place is not None:
            choose("attention_place", self.attention_place, PLACES)
            slot = dataclasses.replace(slot, place=self.attention_place)
        if self.attention_init is not None:
            slot = dataclasses.replace(slot, init=self.attention_init)
        if slot.place == "replace" and "stride" not in slot.hints:
            raise UserError(
                f"attention_place='replace': attention={self.attention!r} makes no"
                " convolution of a stride; one of your own is told it by Slot.hints"
            )
        return slot

    def _refuse_keywords(self) -> None:
        """Refuses what says something of an attention that there is not."""
        for key in ("kwargs", "stages", "place", "init"):
            if value := getattr(self, f"attention_{key}"):
                value = dict(value) if key == "kwargs" else value
                raise UserError(f"attention_{key}={value!r}: needs attention to be set")


def _chosen_stages(
    slot: Slot, stages: Sequence[int] | None, num_stages: int
) -> set[int]:
    """Returns the numbers of the stages that have the module."""
    known = range(1 + num_stages)
    if stages is not None:
        holds = len(stages) > 0 and all(i in known for i in stages)
        require("attention_stages", stages, holds, f"some of 0 to {num_stages}")
        return set(stages)
    if slot.stages is None:
        return set(known)
    return {known[i] for i in slot.stages if i <= num_stages}


def _of_stage(
    slot: Slot, kwargs: Mapping[str, Any], stage: int, num_stages: int
) -> dict[str, Any]:
    """Returns the keywords of a stage, from those that have a value a stage."""
    own = dict(kwargs)
    for key in slot.by_stage:
        values = kwargs.get(key)
        if isinstance(values, Sequence) and not isinstance(values, str):
            holds = len(values) == num_stages
            wanted = f"one value, or {num_stages}: one a stage"
            require(f"attention_kwargs.{key}", values, holds, wanted)
            own[key] = values[max(0, stage - 1)]
    return own


def _with_kwargs(
    slot: Slot, kwargs: Mapping[str, Any], known: Mapping[str, Any]
) -> Slot:
    """Returns a slot whose factory has its keywords, and the hints that are known."""
    assert slot.factory is not None
    hints = tuple(key for key in slot.hints if key not in kwargs)
    given = {key: known[key] for key in hints if key in known} | dict(kwargs)
    return dataclasses.replace(
        slot,
        factory=functools.partial(slot.factory, **given),
        hints=tuple(key for key in hints if key not in known),
        by_channels=tuple(pair for pair in slot.by_channels if pair[0] not in kwargs),
    )


def _takes(factory: AttentionFactory, keyword: str) -> bool:
    return keyword in inspect.signature(factory).parameters
