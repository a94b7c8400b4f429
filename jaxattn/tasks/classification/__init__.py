"""Image classification."""

from typing import TYPE_CHECKING

from jaxattn import lazy

if TYPE_CHECKING:
    from jaxattn.tasks.classification.methods import TTA as TTA
    from jaxattn.tasks.classification.methods import Adaptive as Adaptive
    from jaxattn.tasks.classification.methods import (
        ClassSpecialized as ClassSpecialized,
    )
    from jaxattn.tasks.classification.methods import Decision as Decision
    from jaxattn.tasks.classification.methods import Flip as Flip
    from jaxattn.tasks.classification.methods import Plain as Plain
    from jaxattn.tasks.classification.task import Classification as Classification

_METHODS = ("Adaptive", "ClassSpecialized", "Decision", "Flip", "Plain", "TTA")

__getattr__, __dir__, __all__ = lazy.face(
    __name__,
    {
        "Classification": "jaxattn.tasks.classification.task",
        **dict.fromkeys(_METHODS, "jaxattn.tasks.classification.methods"),
    },
)
