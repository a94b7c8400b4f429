"""What to do with a finished run: commands for the shell, which fit it."""

import functools
import os
import pathlib
import shlex
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jaxattn.ops.features import FEATURE_MAP
from jaxattn.paths import local_path
from jaxattn.training.run import Run

# Where data sets keep images that a network was not trained on, below `data.path`.
_IMAGES = (
    *("val", "test", "test_batch", "cifar-10-batches-py/test_batch"),
    "cifar-100-python/test",
)
_YOURS = "YOUR_IMAGE.jpg"


def next_commands(run: Run, workdir: pathlib.Path) -> list[str]:
    """Returns lines that name what can be done with a finished run.

    Args:
        run: The run.
        workdir: Its folder.
    """
    commands = [" ".join(["jaxattn", *words]) for words in _commands(run, workdir)]
    if run.log.tensorboard:
        commands.append(f"tensorboard --logdir {quoted(workdir)}")
    return ["next:", *(f"  {command}" for command in commands)] if commands else []


def quoted(path: str | os.PathLike[str]) -> str:
    """Returns a path as a shell takes it: relative, if it is below this folder."""
    path = pathlib.Path(os.path.abspath(path))
    if path.is_relative_to(pathlib.Path.cwd()):
        path = path.relative_to(pathlib.Path.cwd())
    # Such a name would be taken for an option.
    text = f"./{path}" if str(path).startswith("-") else str(path)
    return shlex.quote(text)


def _commands(run: Run, workdir: pathlib.Path) -> Iterator[list[str]]:
    """Yields those of `jaxattn`, as words; objects of a user's own limit them."""
    own = run.own.get("own", {})
    if {"model", "task"} & set(own):  # which no command can make
        return
    place = ["--workdir", quoted(workdir)]
    if "data" not in own:
        yield ["evaluate", *place]
    if images := _find_images(run):
        yield ["predict", *place, "--data", quoted(images)]
    elif run.data.image_shape[-1] == 3:  # as those of image files are
        yield ["predict", *place, "--data", _YOURS]
    if "data" not in own and _marks_features(run):
        yield ["attention-maps", *place]


def _find_images(run: Run) -> pathlib.Path | None:
    """Returns a file or folder of the data set that `predict` takes."""
    path = run.config["data"].get("path")
    if not path:
        return None
    places = (local_path(path, "data.path") / name for name in _IMAGES)
    return next((place for place in places if place.exists()), None)


def _marks_features(run: Run) -> bool:
    """Whether the network says what Grad-CAM is to look at."""
    init = functools.partial(run.model.init_with_output, train=False, mutable=True)
    image = jax.ShapeDtypeStruct((1, *run.data.image_shape), jnp.float32)
    _, variables = jax.eval_shape(init, jax.random.key(0), image)
    return FEATURE_MAP in variables["intermediates"]
