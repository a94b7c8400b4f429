"""What a transform is, and the normalisation that follows all of them.

A transform comes in two halves. `draw` turns a key into parameters for the whole batch;
`apply` is deterministic. So what is random is drawn once for the global batch, whatever
the number of devices, and a transform can be checked against another implementation on
the same parameters.

Images are `[N, H, W, C]` with values in 0..255 until `normalize`: uint8 as they come,
float32 once a transform has computed with colours. What is drawn per image has N as its
first axis.
"""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.errors import require

ALL_TARGETS = frozenset({"image", "mask", "boxes"})
"""The targets of a transform that moves no pixel."""

IGNORED = 255
"""The class, in a label map, of what comes from outside the image."""


class Transform(abc.ABC):
    """A random change of every image: a frozen dataclass of its settings.

    The fields are named as their keys in a config's section `augment`. To add a
    transform, write its class, list it in `augment.TRANSFORMS`, and give `Augment` its
    fields.

    Attributes:
        name: Of its draws.
        key: Its own number, by which its draws differ from those of all others,
            whichever run. Part of what a seed stands for, so it never changes: a new
            transform takes the next one.
        targets: What of an example is right after it: "image", and of "mask" (a label
            map) and "boxes" those that it moves along or that may stay as they are.
    """

    name: ClassVar[str]
    key: ClassVar[int]
    targets: ClassVar[frozenset[str]]

    @property
    @abc.abstractmethod
    def runs(self) -> bool:
        """Whether it may change anything."""

    @abc.abstractmethod
    def draw(self, key: jax.Array, n: int, height: int, width: int) -> Any:
        """Draws parameters for `n` images of that size: a tree of `[n, ...]`."""

    @abc.abstractmethod
    def apply(self, images: jax.Array, drawn: Any) -> jax.Array:
        """Transforms images `[N, H, W, C]` by the parameters drawn for them."""

    def apply_to_masks(self, masks: jax.Array, drawn: Any) -> jax.Array:
        """Moves label maps `[N, H, W]` along with their images, if pixels move."""
        del drawn
        return masks

    def apply_to_boxes(self, boxes: jax.Array, drawn: Any, width: int) -> jax.Array:
        """Moves boxes `[N, G, 4]` along with their images, if pixels move.

        Args:
            boxes: x1, y1, x2, y2, pixels.
            drawn: From `draw`.
            width: Of the images, pixels.
        """
        del drawn, width
        return boxes


def require_field(settings: Any, key: str, holds: bool, wanted: str) -> None:
    """Raises a `UserError` that names a field and its value unless it holds."""
    require(f"augment.{key}", getattr(settings, key), holds, wanted)


def require_up_to(settings: Any, most: float, *keys: str) -> None:
    """Raises a `UserError` that names a field unless all are in [0, most]."""
    for key in keys:
        holds = 0 <= getattr(settings, key) <= most
        require_field(settings, key, holds, f"in [0, {most}]")


def normalize(
    images: jax.Array, /, *, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """Returns `(images / 255 - mean) / std` as float32 `[N, H, W, C]`.

    Args:
        images: uint8 or float `[N, H, W, C]` in 0..255.
        mean: Per channel, of intensities in [0, 1]; one value serves all channels.
        std: As `mean`.
    """
    shape = (1, 1, 1, -1)
    scale = 1 / (255 * np.asarray(std, np.float32)).reshape(shape)
    offset = (np.asarray(mean, np.float32) / np.asarray(std, np.float32)).reshape(shape)
    return images.astype(jnp.float32) * scale - offset
