"""When a run ends before its last epoch."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from jaxattn.errors import require

METRIC = "val_accuracy"  # that of the best checkpoint


class Plateau(NamedTuple):
    """How long a run has not gained, as its checkpoints keep it.

    Attributes:
        plateau_accuracy: Validation accuracy of the last epoch that gained.
        plateau_epochs: Epochs since then.
    """

    plateau_accuracy: float = float("-inf")
    plateau_epochs: int = 0

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> "Plateau":
        """Returns the one in a checkpoint's metrics; a new one if there is none."""
        best, epochs = (metrics.get(key) for key in cls._fields)
        return cls() if best is None or epochs is None else cls(best, int(epochs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Ends a run whose validation accuracy (of the raw weights) has stopped rising.

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

    def follow(self, plateau: Plateau, accuracy: float) -> Plateau:
        """Returns the plateau after one more epoch."""
        if accuracy > plateau.plateau_accuracy + self.min_delta:
            return Plateau(accuracy, 0)
        return plateau._replace(plateau_epochs=plateau.plateau_epochs + 1)

    def is_due(self, plateau: Plateau) -> bool:
        """Returns whether the run ends."""
        return 0 < self.patience <= plateau.plateau_epochs
