"""Tasks by name."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxattn.config.bind import bind
from jaxattn.errors import choose
from jaxattn.tasks.classification.task import Classification
from jaxattn.tasks.segmentation.task import Segmentation
from jaxattn.tasks.task import Task

_TASKS: dict[str, Callable[..., Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
}


def make_task(name: str, section: Mapping[str, Any]) -> Task:
    """Returns a task.

    Args:
        name: Of the task, the config's key `task`.
        section: The config's section `loss`: the task's keywords.

    Raises:
        UserError: If the name is unknown or the section wrong.
    """
    choose("task", name, _TASKS)
    return bind(_TASKS[name], section, "loss")()
