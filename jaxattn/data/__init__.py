"""Examples and their order, and the augmentations that run on the device."""

from typing import TYPE_CHECKING

from jaxattn import lazy

if TYPE_CHECKING:
    from jaxattn.data.augment.augment import Augment as Augment
    from jaxattn.data.augment.transform import normalize as normalize
    from jaxattn.data.datasets.registry import load_data as load_data
    from jaxattn.data.files import find_images as find_images
    from jaxattn.data.images import read_image as read_image
    from jaxattn.data.pipeline import Loader as Loader
    from jaxattn.data.pipeline import TrainOrder as TrainOrder
    from jaxattn.data.pipeline import make_loader as make_loader
    from jaxattn.data.source import ArraySource as ArraySource
    from jaxattn.data.source import BadImageError as BadImageError
    from jaxattn.data.source import Data as Data
    from jaxattn.data.source import DrawingSource as DrawingSource
    from jaxattn.data.source import Example as Example
    from jaxattn.data.source import Source as Source
    from jaxattn.data.source import Subset as Subset
    from jaxattn.data.source import labelled as labelled
    from jaxattn.data.source import skip_bad_images as skip_bad_images
    from jaxattn.data.splits import read_labels as read_labels

__getattr__, __dir__, __all__ = lazy.face(
    __name__,
    {
        "ArraySource": "jaxattn.data.source",
        "Augment": "jaxattn.data.augment.augment",
        "BadImageError": "jaxattn.data.source",
        "Data": "jaxattn.data.source",
        "DrawingSource": "jaxattn.data.source",
        "Example": "jaxattn.data.source",
        "Loader": "jaxattn.data.pipeline",
        "Source": "jaxattn.data.source",
        "Subset": "jaxattn.data.source",
        "TrainOrder": "jaxattn.data.pipeline",
        "find_images": "jaxattn.data.files",
        "labelled": "jaxattn.data.source",
        "load_data": "jaxattn.data.datasets.registry",
        "make_loader": "jaxattn.data.pipeline",
        "normalize": "jaxattn.data.augment.transform",
        "read_image": "jaxattn.data.images",
        "read_labels": "jaxattn.data.splits",
        "skip_bad_images": "jaxattn.data.source",
    },
)
