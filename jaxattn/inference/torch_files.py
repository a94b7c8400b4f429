"""PyTorch checkpoint files in and out of workdirs. Needs PyTorch."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.atomic import replacing
from jaxattn.data.preprocess import check_normalization
from jaxattn.errors import UserError, reason, require, reraise_machine_fault
from jaxattn.models.registry import create_model
from jaxattn.models.torch_weights import (
    from_torch,
    import_pytorch,
    read_state_dict,
    to_torch,
)
from jaxattn.training.checkpoints.trained import Trained, require_no_run, write_trained
from jaxattn.training.records.report import versions

_RESERVED = {"name", "num_classes", "dtype", "axis_name"}
_VGG_A_MEAN_STD = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CIFAR10_MEAN_STD = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def published_normalization(
    model: str,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std of the images that a network's authors trained it on.

    Args:
        model: One of `list_models()`.
    """
    if model in ("enhanced_efficient_resnet", "efficient_resnet"):
        return _CIFAR10_MEAN_STD
    return _VGG_A_MEAN_STD if model.startswith("vgg_a") else _IMAGENET_MEAN_STD


def import_torch(
    path: str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    *,
    model: str,
    class_names: Sequence[str],
    image_size: int = 32,
    mean: Sequence[float],
    std: Sequence[float],
    model_kwargs: Mapping[str, Any] | None = None,
) -> int:
    """Makes a workdir of a PyTorch checkpoint, for prediction and evaluation.

    Args:
        path: The file; see `read_state_dict`.
        workdir: Folder to make; it must not hold a run.
        model: One of `list_models()`.
        class_names: The name of each logit.
        image_size: Height and width of the network's images, pixels.
        mean: Of the normalisation it was trained with, per channel, in [0, 1].
        std: As `mean`.
        model_kwargs: Further keywords of the network, such as `base_width`.

    Returns:
        The number of parameters.

    Raises:
        UserError: If the file or a value does not fit.
    """
    check_normalization({"mean": mean, "std": std}, key="", channels=3)
    require("image_size", image_size, image_size >= 1, "at least 1")
    holds = len(set(class_names)) == len(class_names)
    require("class_names", tuple(class_names), holds, "all different")
    kwargs = dict(model_kwargs or {})
    for key in _RESERVED & kwargs.keys():
        raise UserError(f"model_kwargs.{key}: is set by other arguments; leave it out")
    module = create_model(model, num_classes=len(class_names), **kwargs)
    require_no_run(workdir)
    shape = (image_size, image_size, 3)
    state_dict = read_state_dict(path)
    try:
        example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        variables = from_torch(module, state_dict, example)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{path}: {_shortened(reason(error))}") from error
    config = {
        "model": {"name": model, **kwargs},
        "normalize": {"mean": list(mean), "std": list(std)},
        "dataset": {"class_names": list(class_names), "image_shape": shape},
        "imported_from": os.fspath(path),
        "versions": versions(),
    }
    write_trained(workdir, config, variables)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def export_torch(trained: Trained, path: str | os.PathLike[str]) -> None:
    """Writes the weights of a network as a PyTorch state dict.

    Args:
        trained: The network.
        path: The file, whole or not written; its folder is made.

    Raises:
        UserError: If PyTorch is not installed, or the file cannot be written.
    """
    torch = import_pytorch()
    arrays = to_torch(trained.model, trained.variables)
    # Copies, for PyTorch warns of arrays that cannot be written to.
    state = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    try:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch raises the latter too
        reraise_machine_fault(error)
        raise UserError(f"{path}: cannot be written ({reason(error)})") from error


def _shortened(message: str) -> str:
    """Cuts lists of hundreds of names: the first ones tell what is wrong."""
    return message if len(message) <= 400 else f"{message[:400]} ..."
