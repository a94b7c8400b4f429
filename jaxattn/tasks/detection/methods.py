"""How a trained detector predicts."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxattn.data.augment import Augment


class Decision(NamedTuple):
    """What was found in N images, on their canvases.

    Attributes:
        boxes: float32 `[N, D, 4]`: x1, y1, x2, y2, pixels of the canvas.
        scores: float32 `[N, D]`, falling.
        classes: int32 `[N, D]`.
        counts: int32 `[N]`: how many of the D there are.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain:
    """The image itself."""

    views: Sequence[Augment] = (Augment(),)

    def join(self, outputs: Sequence[Any]) -> Decision:
        """Returns what the network finds; on the device.

        Args:
            outputs: Of the network for the one view.
        """
        return find(outputs[0])

    def decide(self, joined: Decision) -> Decision:
        """Returns what `join` has found."""
        return joined


def find(outputs: Any) -> Decision:
    """Returns what a detector finds in a batch, arrays of the device."""
    found = outputs.predict()
    return Decision(
        found.boxes, found.scores, found.labels, found.valid.sum(-1).astype(np.int32)
    )
