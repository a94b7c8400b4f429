"""Augmentation on the device: pure functions of drawn parameters and a batch."""

from typing import TYPE_CHECKING

from jaxattn import lazy

if TYPE_CHECKING:
    from jaxattn.data.augment.augment import TRANSFORMS as TRANSFORMS
    from jaxattn.data.augment.augment import Augment as Augment
    from jaxattn.data.augment.augment import Draws as Draws
    from jaxattn.data.augment.colour import ColorJitter as ColorJitter
    from jaxattn.data.augment.colour import Distortion as Distortion
    from jaxattn.data.augment.colour import Jitter as Jitter
    from jaxattn.data.augment.colour import (
        PhotometricDistortion as PhotometricDistortion,
    )
    from jaxattn.data.augment.geometry import Crop as Crop
    from jaxattn.data.augment.geometry import Flip as Flip
    from jaxattn.data.augment.geometry import Perspective as Perspective
    from jaxattn.data.augment.geometry import Rotation as Rotation
    from jaxattn.data.augment.regions import Erase as Erase
    from jaxattn.data.augment.regions import Mix as Mix
    from jaxattn.data.augment.regions import MixupCutMix as MixupCutMix
    from jaxattn.data.augment.regions import cutmix_box as cutmix_box
    from jaxattn.data.augment.regions import mix as mix
    from jaxattn.data.augment.transform import ALL_TARGETS as ALL_TARGETS
    from jaxattn.data.augment.transform import IGNORED as IGNORED
    from jaxattn.data.augment.transform import Transform as Transform
    from jaxattn.data.augment.transform import normalize as normalize

__getattr__, __dir__, __all__ = lazy.face(
    __name__,
    {
        "ALL_TARGETS": "jaxattn.data.augment.transform",
        "Augment": "jaxattn.data.augment.augment",
        "ColorJitter": "jaxattn.data.augment.colour",
        "Crop": "jaxattn.data.augment.geometry",
        "Distortion": "jaxattn.data.augment.colour",
        "Draws": "jaxattn.data.augment.augment",
        "Erase": "jaxattn.data.augment.regions",
        "Flip": "jaxattn.data.augment.geometry",
        "IGNORED": "jaxattn.data.augment.transform",
        "Jitter": "jaxattn.data.augment.colour",
        "Mix": "jaxattn.data.augment.regions",
        "MixupCutMix": "jaxattn.data.augment.regions",
        "Perspective": "jaxattn.data.augment.geometry",
        "PhotometricDistortion": "jaxattn.data.augment.colour",
        "Rotation": "jaxattn.data.augment.geometry",
        "TRANSFORMS": "jaxattn.data.augment.augment",
        "Transform": "jaxattn.data.augment.transform",
        "cutmix_box": "jaxattn.data.augment.regions",
        "mix": "jaxattn.data.augment.regions",
        "normalize": "jaxattn.data.augment.transform",
    },
)
