"""Ways to predict label maps: which views of an image are looked at.

The probabilities of the views are averaged, each turned back to the image's own place
and size: on the device, for those of all classes are too many for the host.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.data.augment.augment import Draws
from jaxattn.errors import UserError, require
from jaxattn.ops.resize import resize_bilinear
from jaxattn.tasks.segmentation.metrics import predict


class Decision(NamedTuple):
    """What was decided about N images.

    Attributes:
        label_map: uint8 `[N, H, W]`; `IGNORED` all over an image that was skipped.
    """

    label_map: np.ndarray


@dataclasses.dataclass(frozen=True)
class View:
    """An image, or its mirror image, at its own size or another.

    Attributes:
        scale: Of both sides.
        is_mirrored: Whether it is mirrored.

    Raises:
        UserError: If the scale is out of its range.
    """

    scale: float = 1.0
    is_mirrored: bool = False

    def __post_init__(self) -> None:
        require("scale", self.scale, 0.1 <= self.scale <= 8, "in [0.1, 8]")

    def draw(self, key: jax.Array, n: int, height: int, width: int) -> Draws:
        """Draws nothing."""
        del key, n, height, width
        return Draws({}, None)

    def apply(self, images: jax.Array, drawn: Any) -> jax.Array:
        """Returns the view of images `[N, H, W, C]` in 0..255."""
        del drawn
        images = images[:, :, ::-1] if self.is_mirrored else images
        if self.scale == 1:
            return images
        H, W = (max(1, round(self.scale * side)) for side in images.shape[1:3])
        return resize_bilinear(images.astype(jnp.float32), (H, W))

    def undo(self, outputs: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Returns values `[N, h, w, K]` of the view in the place of the image.

        Args:
            outputs: Of the network for the view.
            size: Height and width of the image.
        """
        if outputs.shape[1:3] != size:
            outputs = resize_bilinear(outputs, size)
        return outputs[:, :, ::-1] if self.is_mirrored else outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiView:
    """The mean of the probabilities of some views.

    Attributes:
        views: The views, the first of them the image itself.

    Raises:
        UserError: If it is not.
    """

    views: Sequence[View] = (View(),)

    def __post_init__(self) -> None:
        if not self.views or self.views[0] != View():
            raise UserError("views: the first must be the image itself")

    def join(self, outputs: Sequence[jax.Array]) -> jax.Array:
        """Returns the likeliest class of each pixel, uint8 `[N, H, W]`.

        Args:
            outputs: Logits `[N, h, w, K]` of each view.
        """
        first, *others = outputs
        if not others:
            # The logits decide: rounded probabilities may be equal.
            return predict(first)
        _, H, W, _ = first.shape
        total = jax.nn.softmax(first.astype(jnp.float32))
        for view, logits in zip(self.views[1:], others, strict=True):
            total += view.undo(jax.nn.softmax(logits.astype(jnp.float32)), (H, W))
        return predict(total)

    def decide(self, joined: np.ndarray) -> Decision:
        """Returns what `join` has decided."""
        return Decision(joined)


FLIP = (View(), View(is_mirrored=True))
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Of mmseg's test-time augmentation."""


def multi_scale(scales: Sequence[float] = SCALES) -> MultiView:
    """Returns the views of some scales and their mirror images, as mmseg has them."""
    others = [scale for scale in scales if scale != 1]
    return MultiView(
        views=tuple(
            View(scale, is_mirrored)
            for scale in (1.0, *others)
            for is_mirrored in (False, True)
        )
    )
