"""Networks as StableHLO files, which run without jaxattn.

JAX promises that a file of today can be read by its releases of the next six months,
and for three weeks by earlier ones (docs.jax.dev, "Exporting and serialization"); with
the same release it can always be read. Export anew after that, from the workdir.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from jaxattn.atomic import require_writable, write_atomically, write_json
from jaxattn.config.bind import DTYPES
from jaxattn.errors import choose, require
from jaxattn.inference.freezing import freeze
from jaxattn.inference.predict import make_answer
from jaxattn.ops import cpu_kernels
from jaxattn.paths import local_path
from jaxattn.training.checkpoints.trained import Trained
from jaxattn.training.records.report import versions

PLATFORMS = ("cpu", "cuda", "tpu", "rocm")
_FORMAT = "StableHLO, serialized by jax.export"


def export_model(
    trained: Trained,
    path: str | os.PathLike[str],
    *,
    weights: str,
    dtype: str | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    fold_batch_norm: bool = True,
    probabilities: bool = False,
) -> int:
    """Writes a network, its weights inside, and a JSON file that describes it.

    The function in it takes images uint8 `[N, H, W, C]`, N any number from 1, and
    returns what the task answers: of a classifier probabilities float32 `[N, classes]`,
    of a segmentation a mapping with `label_map`, uint8 `[N, H, W]`. The description
    says how an image of any size becomes one of them.

    Args:
        trained: The network.
        path: The file, whole or not written; its folder is made. The description is
            beside it, with the suffix `.json`.
        weights: Their name, for the description.
        dtype: Computation dtype, "float32" or "bfloat16"; None keeps the run's.
        platforms: What it can run on, some of `PLATFORMS`.
        fold_batch_norm: As of `Predictor`.
        probabilities: Answers those of all classes in any case; see `Task.answer`.

    Returns:
        The size of the file in bytes.

    Raises:
        UserError: If a value is not one of the choices, or a file cannot be written.
    """
    dtype = str(dtype or trained.config.get("dtype", "float32"))
    choose("dtype", dtype, DTYPES)
    for platform in platforms:
        choose("platforms", platform, PLATFORMS)
    path = local_path(path, "out")
    description = path.with_suffix(".json")
    wanted = "of another suffix than .json, which is the description's"
    require("out", str(path), path != description, wanted)
    for file in (path, description):
        require_writable(file)
    # Its calls are of a library that other machines do not have.
    with cpu_kernels.disabled():
        answer = make_answer(trained, dtype=dtype, probabilities=probabilities)
        exported = _export(trained, answer, platforms, fold_batch_norm)
        made_with = versions()
    data = bytes(exported.serialize())
    write_atomically(path, data)
    content = {
        "format": _FORMAT,
        "calling_convention": exported.calling_convention_version,
        "platforms": list(exported.platforms),
        "model": trained.config["model"],
        "dtype": dtype,
        "weights": weights,
        "step": trained.step,
        "class_names": list(trained.class_names),
        **trained.preprocess.frame.describe(),
        "input": "uint8 [N, H, W, C] in 0..255, RGB",
        "output": trained.task.tell_answer(probabilities=probabilities),
        "normalize": trained.config["normalize"],  # done inside
        "versions": made_with,
    }
    write_json(description, content)
    return len(data)


def _export(
    trained: Trained,
    answer: Callable[[Any, jax.Array], Any],
    platforms: Sequence[str],
    fold_batch_norm: bool,
) -> export.Exported:
    variables = trained.variables
    (N,) = export.symbolic_shape("N")
    images = jax.ShapeDtypeStruct((N, *trained.image_shape), jnp.uint8)
    if fold_batch_norm:
        answer, weights = freeze(answer, variables, images)
        variables = jax.device_get(weights)
    closed = jax.jit(lambda images: answer(variables, images))
    return export.export(closed, platforms=platforms)(images)
