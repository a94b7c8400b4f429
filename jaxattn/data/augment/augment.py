"""The transforms of a recipe: a config's section, and what it draws and applies."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxattn.data.augment.colour import ColorJitter, PhotometricDistortion
from jaxattn.data.augment.geometry import Crop, Flip, Perspective, Rotation
from jaxattn.data.augment.regions import Erase, Mix, MixupCutMix
from jaxattn.data.augment.transform import ALL_TARGETS, Transform

TRANSFORMS: tuple[type[Transform], ...] = (
    Flip,
    Crop,
    Rotation,
    ColorJitter,
    PhotometricDistortion,
    Perspective,
    Erase,
)
"""Those of single images, in the order in which they run."""


class Draws(NamedTuple):
    """What one training step drew: per image, and for the batch.

    Attributes:
        images: By transform; a tree whose arrays all have N as first axis.
        mix: How the batch is mixed, where the recipe mixes.
    """

    images: dict[str, Any]
    mix: Mix | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """The training transforms of a recipe; those left at 0 do not run.

    In order: mirror, pad and crop, rotation, colour jitter, photometric distortion,
    perspective, random erasing; then, on normalised images, mixup or CutMix, chosen
    once per batch.

    Attributes:
        flip_probability: Share of images that are mirrored.
        crop_padding_px: Padding on each side before the crop to the original size.
        crop_fill: What the padding holds: "zero", "reflect" or "edge".
        rotation_degrees: Images are rotated by up to this, either way.
        brightness: Factors are drawn from [1 - brightness, 1 + brightness].
        contrast: As `brightness`.
        saturation: As `brightness`.
        hue: Images' hue is shifted by up to this, either way; turns, at most 0.5.
        photometric_probability: Share of images of which each of brightness,
            contrast, saturation and hue is distorted; see `PhotometricDistortion`.
        photometric_brightness: Largest shift either way, of values in 0..255.
        photometric_contrast: Largest change of the factor 1.
        photometric_saturation: As `photometric_contrast`.
        photometric_hue: Largest shift either way in turns, at most 0.5.
        perspective_probability: Share of images whose corners move inward.
        perspective_distortion: Largest move as a share of half the side, in (0, 1].
        erase_probability: Share of images with a rectangle made black.
        erase_area: Smallest and largest share of the image's area.
        erase_aspect: Smallest and largest height / width of the rectangle.
        mixup_probability: Share of batches mixed by mixup.
        mixup_alpha: Its share is drawn from Beta(alpha, alpha).
        cutmix_probability: Share of batches mixed by CutMix.
        cutmix_alpha: As `mixup_alpha`.
        validation: Validation images are transformed too, by draws of their own, but
            not mixed: as some sources do, whose figures are to be compared.

    Raises:
        UserError: If a value is out of its range.
    """

    flip_probability: float = 0.0
    crop_padding_px: int = 0
    crop_fill: str = "zero"
    rotation_degrees: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    photometric_probability: float = 0.0
    photometric_brightness: float = 32.0
    photometric_contrast: float = 0.5
    photometric_saturation: float = 0.5
    photometric_hue: float = 0.1
    perspective_probability: float = 0.0
    perspective_distortion: float = 0.1
    erase_probability: float = 0.0
    erase_area: Sequence[float] = (0.02, 0.33)
    erase_aspect: Sequence[float] = (0.3, 3.3)
    mixup_probability: float = 0.0
    mixup_alpha: float = 1.0
    cutmix_probability: float = 0.0
    cutmix_alpha: float = 1.0
    validation: bool = False

    def __post_init__(self) -> None:
        _ = self.transforms, self.mixing  # they check the values

    @functools.cached_property
    def transforms(self) -> tuple[Transform, ...]:
        """The transforms of single images that run."""
        every = [self._make(kind) for kind in TRANSFORMS]
        return tuple(transform for transform in every if transform.runs)

    @functools.cached_property
    def mixing(self) -> MixupCutMix:
        """How batches are mixed."""
        return self._make(MixupCutMix)

    def _make(self, kind: Any) -> Any:
        """Makes a transform of the fields that are named as its own."""
        names = [field.name for field in dataclasses.fields(kind)]
        return kind(**{name: getattr(self, name) for name in names})

    @property
    def mixes(self) -> bool:
        """Whether batches may be mixed."""
        return self.mixing.runs

    @property
    def running(self) -> tuple[Any, ...]:
        """What runs: the transforms, and the mixing of batches if there is any."""
        return (*self.transforms, *([self.mixing] if self.mixes else []))

    @property
    def targets(self) -> frozenset[str]:
        """What of an example is right after all of it: see `Transform.targets`."""
        return ALL_TARGETS.intersection(*(each.targets for each in self.running))

    def draw(self, key: jax.Array, n: int, height: int, width: int) -> Draws:
        """Draws the parameters of one step.

        Args:
            key: PRNG key of the step.
            n: Images of the global batch.
            height: Of the images, pixels.
            width: Of the images, pixels.
        """

        def drawn_by(transform: Any) -> Any:
            own = jax.random.fold_in(key, transform.key)
            return transform.draw(own, n, height, width)

        images = {each.name: drawn_by(each) for each in self.transforms}
        return Draws(images, drawn_by(self.mixing) if self.mixes else None)

    def apply(self, images: jax.Array, drawn: dict[str, Any]) -> jax.Array:
        """Transforms images by the parameters drawn for them.

        Args:
            images: uint8 `[N, H, W, C]`.
            drawn: `Draws.images`.

        Returns:
            `[N, H, W, C]` in 0..255: uint8, or float32 after jitter or perspective.

        Raises:
            ValueError: If a transform does not fit the images' shape.
        """
        for transform in self.transforms:
            images = transform.apply(images, drawn[transform.name])
        return images

    def apply_to_batch(
        self, batch: Mapping[str, Any], kinds: Mapping[str, str], drawn: dict[str, Any]
    ) -> dict[str, Any]:
        """Transforms the images of a batch, and moves their targets along.

        Args:
            batch: `{"image": uint8 [N, H, W, C], ...}`.
            kinds: What each target is, by its key: see `Task.target_kinds`.
            drawn: `Draws.images`.

        Returns:
            The batch, its images as `apply` returns them.
        """
        moved = {
            key: self.apply_to_masks(batch[key], drawn)
            for key, kind in kinds.items()
            if kind == "mask"
        }
        return {**batch, "image": self.apply(batch["image"], drawn), **moved}

    def apply_to_masks(self, masks: jax.Array, drawn: dict[str, Any]) -> jax.Array:
        """Moves label maps `[N, H, W]` along with their images.

        Right where `targets` has "mask".
        """
        for transform in self.transforms:
            masks = transform.apply_to_masks(masks, drawn[transform.name])
        return masks
