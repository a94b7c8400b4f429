"""When a run ends before its last epoch."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from jaxattn.errors import require

# What checkpoints call the fields of `Plateau`, whatever the task's figure is.
_ON_DISK = ("plateau_accuracy", "plateau_epochs")


class Plateau(NamedTuple):
    """How long a run has not gained, as its checkpoints keep it.

    Attributes:
        best: Validation figure of the last epoch that gained.
        epochs: Epochs since then.
    """

    best: float = float("-inf")
    epochs: int = 0

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> "Plateau":
        """Returns the one in a checkpoint's metrics; a new one if there is none."""
        best, epochs = (metrics.get(key) for key in _ON_DISK)
        return cls() if best is None or epochs is None else cls(best, int(epochs))

    def to_metrics(self) -> dict[str, float]:
        """Returns what a checkpoint's metrics keep of it."""
        return dict(zip(_ON_DISK, self, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Ends a run whose validation figure (of the raw weights) has stopped rising.

    The figure is the task's: accuracy, in classification.

    The weights are those of the same run without it, up to the epoch of its end.

    Attributes:
        patience: Epochs in a row without a gain after which the run ends; 0: never.
        min_delta: What an epoch must be above the last one that gained, to gain.
    """

    patience: int = 0
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        for key in ("patience", "min_delta"):
            value = getattr(self, key)
            require(f"early_stopping.{key}", value, value >= 0, "at least 0")

    def follow(self, plateau: Plateau, figure: float) -> Plateau:
        """Returns the plateau after one more epoch."""
        if figure > plateau.best + self.min_delta:
            return Plateau(figure, 0)
        return plateau._replace(epochs=plateau.epochs + 1)

    def is_due(self, plateau: Plateau) -> bool:
        """Returns whether the run ends."""
        return 0 < self.patience <= plateau.epochs
