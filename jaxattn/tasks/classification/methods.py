"""Ways to predict: which views of an image are classified, and how they are decided.

A method is its views and a pure function from their logits `[V, N, C]` to a `Decision`.
All but `Plain` come with the constants of their source as defaults:
prathamssaraf/Attention-Enhanced-ResNet-for-CIFAR-10-Classification @847ab2b,
scripts/predict.py and src/utils/common.py (decisions compared in tests/test_methods.py)

Notation: V views, N images, C classes, K files.
Deviations from the code:
  - `Adaptive` decides between two decisions about the same views, where the code draws
    the random views anew for each.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxattn.data.augment import Augment
from jaxattn.errors import UserError, require

IDENTITY = Augment()
MIRROR = Augment(flip_probability=1.0)
# The first is the image itself; the third and later draw anew for every image.
VIEWS = (
    IDENTITY,
    MIRROR,
    Augment(crop_padding_px=4, crop_fill="reflect"),
    Augment(crop_padding_px=4, crop_fill="edge"),
    Augment(rotation_degrees=5.0),
    Augment(rotation_degrees=10.0),
    Augment(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.02),
    Augment(brightness=0.05, contrast=0.15, saturation=0.05),
)
# Of airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.
CIFAR10_THRESHOLDS = (0.85, 0.90, 0.75, 0.70, 0.75, 0.70, 0.85, 0.85, 0.90, 0.90)
CIFAR10_HARD_CLASSES = (2, 3, 5)  # bird, cat, dog


class Decision(NamedTuple):
    """What was decided about N images.

    Attributes:
        labels: int64 `[N]`.
        probabilities: float64 `[N, C]`; the label is where they are largest.
    """

    labels: np.ndarray
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain:
    """The image itself."""

    views: Sequence[Augment] = (IDENTITY,)

    def decide(self, logits: np.ndarray) -> Decision:
        """Decides by the largest logit `[1, N, C]`."""
        return _by_probabilities(softmax(logits[0]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flip:
    """The mean of the logits of the image and its mirror image."""

    views: Sequence[Augment] = (IDENTITY, MIRROR)

    def decide(self, logits: np.ndarray) -> Decision:
        """Decides by the mean over the views of the logits `[V, N, C]`."""
        return _by_probabilities(softmax(logits.astype(np.float64).mean(0)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TTA:
    """Test-time augmentation: the weighted mean of the views' probabilities.

    Attributes:
        views: The views.
        weights: One per view, in any unit; None gives the first one 2, the others 1.
        temperature: Divides the logits; below 1 it sharpens.

    Raises:
        UserError: If a value is out of its range.
    """

    views: Sequence[Augment] = VIEWS
    weights: Sequence[float] | None = None
    temperature: float = 0.9

    def __post_init__(self) -> None:
        value = self.temperature
        require("tta.temperature", value, 0 < value < np.inf, "finite and above 0")
        if self.weights is not None:
            V, weights = len(self.views), tuple(self.weights)
            holds = len(weights) == V and max(weights) > 0
            holds = holds and all(0 <= weight < np.inf for weight in weights)
            wanted = f"{V} numbers of at least 0, one per view, not all 0"
            require("tta.weights", weights, holds, wanted)

    def decide(self, logits: np.ndarray) -> Decision:
        """Decides by the logits `[V, N, C]`."""
        weights = self.weights or (2.0, *[1.0] * (len(self.views) - 1))
        shares = np.asarray(weights, np.float64) / np.sum(weights)
        probabilities = softmax(logits, self.temperature)
        return _by_probabilities(np.tensordot(shares, probabilities, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassSpecialized:
    """Asks all views about the images whose confidence is low for their class.

    Attributes:
        views: The views, the first of which is the image itself.
        thresholds: By class: a confidence below it is low.
        temperature: Divides the logits of the views before their mean.

    Raises:
        UserError: If a value is out of its range.
    """

    views: Sequence[Augment] = VIEWS
    thresholds: Sequence[float] = CIFAR10_THRESHOLDS
    temperature: float = 1.2

    def __post_init__(self) -> None:
        value = self.temperature
        wanted = "finite and above 0"
        require("specialized.temperature", value, 0 < value < np.inf, wanted)

    def decide(self, logits: np.ndarray) -> Decision:
        """Decides by the logits `[V, N, C]`.

        Raises:
            UserError: If there is not one threshold per class.
        """
        own, unsure = softmax(logits[0]), self.is_unsure(logits)
        mean = np.mean(softmax(logits, self.temperature), 0)
        return _by_probabilities(np.where(unsure[:, None], mean, own))

    def is_unsure(self, logits: np.ndarray) -> np.ndarray:
        """Which images have a low confidence, bool `[N]`; logits `[V, N, C]`."""
        C = logits.shape[-1]
        if len(self.thresholds) != C:
            raise UserError(
                f"specialized.thresholds: {len(self.thresholds)} given, the network has"
                f" {C} classes and needs one for each"
            )
        own = softmax(logits[0])
        return np.max(own, -1) < np.asarray(self.thresholds)[np.argmax(own, -1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Chooses between `TTA` and `ClassSpecialized` by the image's own confidence.

    Attributes:
        tta: The one method.
        specialized: The other, of the same views.
        hard_classes: Classes whose confidence is raised by `bonus`, and for which the
            specialised decision is taken where no confidence is high.
        bonus: See `hard_classes`.
        very_sure: A confidence above it is taken at once.
        sure: A confidence above it is taken if it is the higher one.

    Raises:
        UserError: If the two methods look at different views.
    """

    tta: TTA = TTA()
    specialized: ClassSpecialized = ClassSpecialized()
    hard_classes: Sequence[int] = CIFAR10_HARD_CLASSES
    bonus: float = 0.05
    very_sure: float = 0.95
    sure: float = 0.80

    def __post_init__(self) -> None:
        if tuple(self.tta.views) != tuple(self.specialized.views):
            raise UserError(
                "adaptive: tta.views and specialized.views must be the same"
            )

    @property
    def views(self) -> Sequence[Augment]:
        """Those of both methods."""
        return self.tta.views

    def decide(self, logits: np.ndarray) -> Decision:
        """Decides by the logits `[V, N, C]`.

        Raises:
            UserError: If there is not one threshold per class.
        """
        C, hard = logits.shape[-1], tuple(self.hard_classes)
        holds = all(0 <= label < C for label in hard)
        require("adaptive.hard_classes", hard, holds, f"in [0, {C - 1}]")
        T, S = self.tta.decide(logits), self.specialized.decide(logits)
        labels, rules = self.choose(T.labels, S.labels, softmax(logits[0]))
        chose_tta = np.isin(rules, (1, 2, 4, 7))[:, None]
        return Decision(labels, np.where(chose_tta, T.probabilities, S.probabilities))

    def choose(
        self, tta: np.ndarray, specialized: np.ndarray, own: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns labels `[N]` and the number 1 to 7 of the rule that decided `[N]`.

        Args:
            tta: Labels `[N]` of one method.
            specialized: Labels `[N]` of the other.
            own: Probabilities `[N, C]` of the image itself.
        """
        hard = np.asarray(self.hard_classes)
        images = np.arange(len(own))
        tta_confidence = own[images, tta] + self.bonus * np.isin(tta, hard)
        confidence = own[images, specialized] + self.bonus * np.isin(specialized, hard)
        rules = (  # the first that holds decides
            (tta == specialized, tta),
            (tta_confidence > self.very_sure, tta),
            (confidence > self.very_sure, specialized),
            ((tta_confidence > self.sure) & (tta_confidence > confidence), tta),
            ((confidence > self.sure) & (confidence > tta_confidence), specialized),
            (np.isin(tta, hard), specialized),
            (np.ones(len(own), bool), tta),
        )
        first = np.argmax([holds for holds, _ in rules], 0)
        labels = np.stack([choice for _, choice in rules])[first, images]
        return labels, first + 1


def vote(labels: np.ndarray) -> np.ndarray:
    """Returns the majority of each column; of equals the smallest label.

    Args:
        labels: int `[K, N]`, at least 0.

    Returns:
        int64 `[N]`.
    """
    values = np.unique(labels)
    counts = [np.sum(labels == value, 0) for value in values]
    return values[np.argmax(counts, 0)]


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Returns the float64 softmax of `logits / temperature` along the last axis."""
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - np.max(scaled, -1, keepdims=True))
    return powers / np.sum(powers, -1, keepdims=True)


def _by_probabilities(probabilities: np.ndarray) -> Decision:
    return Decision(np.argmax(probabilities, -1), probabilities)
