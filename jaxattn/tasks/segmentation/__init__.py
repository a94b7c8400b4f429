"""Semantic segmentation."""

from typing import TYPE_CHECKING

from jaxattn import lazy

if TYPE_CHECKING:
    from jaxattn.tasks.segmentation.methods import Decision as Decision
    from jaxattn.tasks.segmentation.methods import MultiView as MultiView
    from jaxattn.tasks.segmentation.methods import View as View
    from jaxattn.tasks.segmentation.task import Segmentation as Segmentation

_METHODS = ("Decision", "MultiView", "View")

__getattr__, __dir__, __all__ = lazy.face(
    __name__,
    {
        "Segmentation": "jaxattn.tasks.segmentation.task",
        **dict.fromkeys(_METHODS, "jaxattn.tasks.segmentation.methods"),
    },
)
