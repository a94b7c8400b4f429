"""Object detection."""

from typing import TYPE_CHECKING

from jaxattn import lazy

if TYPE_CHECKING:
    from jaxattn.tasks.detection.methods import Decision as Decision
    from jaxattn.tasks.detection.methods import Plain as Plain
    from jaxattn.tasks.detection.metrics import Scene as Scene
    from jaxattn.tasks.detection.metrics import evaluate_scenes as evaluate_scenes
    from jaxattn.tasks.detection.task import Detection as Detection

__getattr__, __dir__, __all__ = lazy.face(
    __name__,
    {
        "Decision": "jaxattn.tasks.detection.methods",
        "Detection": "jaxattn.tasks.detection.task",
        "Plain": "jaxattn.tasks.detection.methods",
        "Scene": "jaxattn.tasks.detection.metrics",
        "evaluate_scenes": "jaxattn.tasks.detection.metrics",
    },
)
