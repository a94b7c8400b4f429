"""Where an attention module sits in a network, and what comes with it.

A network makes one `Slot` of its keywords `attention` and `attention_kwargs`, and asks
it: it names no block. A new block is one entry of `_SLOTS`; a new place is one of
`PLACES`, and a line in the blocks that have it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.nn.initializers import Initializer

from jaxattn.attention.canet import MultiKernelECA
from jaxattn.attention.cbam import CBAM
from jaxattn.attention.eca import ECA
from jaxattn.attention.scsa import SCSA
from jaxattn.errors import UserError, choose, suggest
from jaxattn.ops.init import kaiming_normal, torch_kernel

PLACES = ("inside", "after")

# Called with `name=`, returns the attention module of one block.
AttentionFactory = Callable[..., nn.Module]


@dataclasses.dataclass(frozen=True)
class Slot:
    """An attention module's place in every block of a network.

    Networks take one as `attention=`, too: `Slot(MyBlock, "inside")`.

    Attributes:
        factory: Called with `name=`, returns the module of one block, which is called
            as `module(x, train=train)`; None is a network without attention.
        place: "inside", after the activation of the block's 3x3 convolution (of the
            first one in a basic block); or "after", behind the last normalisation,
            before the residual sum.
        hints: Keywords of the factory that the network sets, unless `attention_kwargs`
            does: any of "window_size", the side of the last map of an image of the
            stem's usual size.
        cifar_stem_init: Initialiser of the kernel of the stem "cifar"; by default
            torch's, as of a layer that replaces torchvision's.
        zero_init: Starts the scale of a residual block's last normalisation at 0, so
            that the block starts as its shortcut.
        small_head_init: Starts the last layer's kernel normal with deviation 0.01 and
            its bias at 0, also where torchvision's would have torch's default.

    Raises:
        UserError: If `place` is unknown.
    """

    factory: AttentionFactory | None = None
    place: str = "after"
    hints: tuple[str, ...] = ()
    cifar_stem_init: Initializer = torch_kernel
    zero_init: bool = False
    small_head_init: bool = False

    def __post_init__(self) -> None:
        choose("place", self.place, PLACES)

    def is_at(self, place: str) -> bool:
        """Whether there is a module at a place, one of `PLACES`."""
        return self.factory is not None and place == self.place

    def attend(self, x: jax.Array, place: str, *, train: bool) -> jax.Array:
        """Applies the module, named `attn`; call it in a block's `__call__`.

        Args:
            x: Feature map `[N, H, W, C]` at a place of the block.
            place: That place, one of `PLACES`.
            train: Passed to the module.

        Returns:
            What the module makes of the map, or the map where its place is another.
        """
        if self.factory is None or not self.is_at(place):
            return x
        return self.factory(name="attn")(x, train=train)


_SLOTS = {
    "cbam": Slot(CBAM),
    # All that its code starts otherwise than torchvision: see jaxattn.models.resnet.
    "scsa": Slot(
        functools.partial(
            SCSA, kernel_init=kaiming_normal, bias_init=nn.initializers.zeros
        ),
        place="inside",
        hints=("window_size",),
        cifar_stem_init=kaiming_normal,
        zero_init=True,
        small_head_init=True,
    ),
    "eca": Slot(ECA),
    "multi_kernel_eca": Slot(MultiKernelECA),
}


def make_slot(
    attention: str | Slot | AttentionFactory | None,
    attention_kwargs: Mapping[str, Any] | None = None,
    **hints: Any,
) -> Slot:
    """Returns the place of a network's attention, from the network's keywords.

    Args:
        attention: "cbam", "scsa", "eca", "multi_kernel_eca", a factory, whose place is
            "after", a slot, or None.
        attention_kwargs: Keywords of the factory.
        **hints: What the network knows of itself (see `Slot.hints`).

    Raises:
        UserError: If the name is unknown, if `attention` is a module instead of what
            makes one, or if there are keywords and no attention.
    """
    kwargs = dict(attention_kwargs or {})
    slot = _find_slot(attention)
    if slot.factory is None:
        if kwargs:
            raise UserError(f"attention_kwargs={kwargs}: needs attention to be set")
        return slot
    kwargs = {key: hints[key] for key in slot.hints} | kwargs
    return dataclasses.replace(slot, factory=functools.partial(slot.factory, **kwargs))


def _find_slot(attention: str | Slot | AttentionFactory | None) -> Slot:
    if attention is None:
        return Slot()
    if isinstance(attention, Slot):
        return attention
    if isinstance(attention, str):
        choose("attention", attention, _SLOTS)
        return _SLOTS[attention]
    if isinstance(attention, nn.Module) or not callable(attention):
        choices = suggest(attention, _SLOTS)
        raise UserError(f"attention={attention!r}: {choices}, or a module factory")
    return Slot(attention)
