"""The face of a package: names that are imported where they are first used.

A package's `__init__` says once more, under `TYPE_CHECKING`, what it shows, since type
checkers and editors do not run it:

    if TYPE_CHECKING:
        from jaxattn.data.images import read_image as read_image

    __getattr__, __dir__, __all__ = lazy.face(
        __name__, {"read_image": "jaxattn.data.images"}
    )
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

Face = tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]


def face(package: str, names: Mapping[str, str]) -> Face:
    """Returns a package's `__getattr__`, `__dir__` and `__all__`.

    Args:
        package: Its `__name__`.
        names: From each name that it shows to the module that has it.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(names[name]), name)

    return find, lambda: sorted(names), sorted(names)
