"""Data sets, a file each, and the registry that finds them by name."""

from typing import TYPE_CHECKING

from jaxattn import lazy

if TYPE_CHECKING:
    from jaxattn.data.datasets.registry import LOADERS as LOADERS
    from jaxattn.data.datasets.registry import load_data as load_data

_REGISTRY = "jaxattn.data.datasets.registry"

__getattr__, __dir__, __all__ = lazy.face(
    __name__, {"LOADERS": _REGISTRY, "load_data": _REGISTRY}
)
