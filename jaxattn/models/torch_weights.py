"""PyTorch state dicts from and to Flax variables, by one naming rule.

The torch name of a parameter is its Flax path joined with dots. Of the leaves,
`kernel` is `weight` with its axes permuted, a normalisation's `scale` is `weight`, its
`mean` and `var` are `running_mean` and `running_var`; every other leaf keeps name and
shape.

Classifiers of mmpretrain and blocks of other code are renamed first (`torch_layouts`).
A 1x1 convolution and a linear layer hold the same weights: each loads as the other.
"""

import importlib
import os
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxattn.errors import UserError, reason, reraise_machine_fault
from jaxattn.models import safetensors_files
from jaxattn.models.torch_layouts import block_names, torchvision_names

_TORCH_LEAF = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# torch axes of a kernel in Flax's order: OI -> IO, OIK -> KIO, OIHW -> HWIO.
_TO_FLAX = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0)}
# PyTorch counts training steps there; nothing of ours reads it.
_COUNTER = "num_batches_tracked"
# The filters of FcaNet, which the size of the map determines.
_COMPUTED = "dct_layer.weight"

# Where a checkpoint of a training script keeps its state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PARALLEL_PREFIX = "module."  # of nn.DataParallel and DistributedDataParallel

_Path = tuple[str, ...]


def from_torch(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    example: Any,
    *,
    may_lack: Collection[tuple[str, ...]] = (),
) -> dict[str, Any]:
    """Returns the Flax variables that hold a PyTorch state dict.

    Args:
        module: A network or block of this package.
        state_dict: Arrays (anything NumPy converts) by PyTorch name, this package's or
            one that `torch_layouts` knows.
        example: An input of the module `[N, H, W, C]`, array or `ShapeDtypeStruct`.
        may_lack: Paths of variables, each with its collection first, that need not be
            in the state dict; what it lacks is not in the result.

    Returns:
        Variables for `module.apply`, float32 NumPy arrays. The filters of
        `FrequencyChannelAttention` are those of the example's size, whatever is given.

    Raises:
        ValueError: If an entry is missing, unexpected or of another shape; the message
            lists the names.
    """
    wanted = _abstract_leaves(module, example)
    names = {torch_name(path): path for path in wanted}
    renamed = torchvision_names(state_dict)
    given = {
        renamed[k]: v for k, v in state_dict.items() if k.split(".")[-1] != _COUNTER
    }
    ours = block_names(given, names)
    given = {ours[k]: v for k, v in given.items()}
    needed = given.keys() | {n for n, path in names.items() if path not in may_lack}
    needed = {name: names[name] for name in needed & names.keys()}
    given |= _computed_entries(module, example, needed)
    problems = []
    lacks = names.keys() - given.keys()
    if missing := sorted(name for name in lacks if names[name] not in may_lack):
        problems.append(f"missing: {', '.join(missing)}")
    if unexpected := sorted(given.keys() - names.keys()):
        problems.append(f"unexpected: {', '.join(unexpected)}")
    leaves, misshaped = {}, []
    for name in sorted(names.keys() & given.keys()):
        path = names[name]
        array = np.asarray(given[name], np.float32)
        array = _to_flax(path, array, wanted[path].ndim)
        if array.shape != wanted[path].shape:
            want = _torch_shape(path, wanted[path].shape)
            misshaped.append(f"{name} {np.shape(given[name])}, not {want}")
        leaves[path] = array
    if misshaped:
        problems.append(f"wrong shape: {', '.join(misshaped)}")
    if problems:
        raise ValueError(
            f"state dict does not fit {type(module).__name__}: {'; '.join(problems)}"
        )
    return traverse_util.unflatten_dict(leaves)


def to_torch(module: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the PyTorch state dict of Flax variables, as NumPy arrays.

    Args:
        module: The network or block that the variables belong to.
        variables: With the collections `params` and, if it normalises, `batch_stats`.

    Returns:
        Arrays by PyTorch name; `num_batches_tracked` of every normalisation is 0.

    Raises:
        ValueError: If there are no parameters.
    """
    if not variables.get("params"):
        raise ValueError(f"to_torch: no parameters of {type(module).__name__} given")
    state = {}
    collections = {k: variables[k] for k in ("params", "batch_stats") if k in variables}
    for path, leaf in traverse_util.flatten_dict(collections).items():
        array = np.asarray(leaf)
        if path[-1] == "kernel":
            array = array.transpose(np.argsort(_TO_FLAX[array.ndim]))
        state[torch_name(path)] = np.ascontiguousarray(array)
        if path[-1] == "var":
            counter = ".".join((*path[1:-1], _COUNTER))
            state[counter] = np.zeros((), np.int64)
    return state


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a PyTorch checkpoint without running code from it.

    Args:
        path: A `.safetensors` file, which needs no PyTorch; or one of `torch.save`: a
            state dict, or a dict that holds one as `state_dict`, `model_state_dict` or
            `model`. A prefix `module.` is dropped.

    Returns:
        Arrays by PyTorch name.

    Raises:
        UserError: If PyTorch is not installed, or the file is not such a one.
    """
    if os.fspath(path).endswith(safetensors_files.SUFFIX):
        return _without_prefix(safetensors_files.read_safetensors(path))
    torch = import_pytorch()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        reraise_machine_fault(error)
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # unpickling, zip and torch each raise their own
        reraise_machine_fault(error)
        raise UserError(
            f"{path}: not a PyTorch file of plain weights ({reason(error)})"
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: holds no state dict")
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"{path}: holds no state dict: its entry {name!r} is a"
                f" {type(value).__name__}, not a tensor"
            )
    return _without_prefix({k: _to_numpy(torch, v) for k, v in content.items()})


def import_pytorch() -> ModuleType:
    """Imports PyTorch.

    Raises:
        UserError: If it is not installed.
    """
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UserError("PyTorch is needed for its files: pip install torch") from error


def _without_prefix(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(_PARALLEL_PREFIX): a for name, a in state.items()}


def _to_numpy(torch: Any, tensor: Any) -> np.ndarray:
    is_counter = not tensor.is_floating_point()
    return (tensor if is_counter else tensor.to(torch.float32)).detach().numpy()


def _abstract_leaves(module: nn.Module, example: Any) -> dict[_Path, Any]:
    init = lambda x: module.init(jax.random.key(0), x, train=False)  # noqa: E731
    return traverse_util.flatten_dict(jax.eval_shape(init, example))


def _computed_entries(
    module: nn.Module, example: Any, names: Mapping[str, _Path]
) -> dict[str, Any]:
    """Returns the entries by name that follow from the shape of the input."""
    paths = {name: path for name, path in names.items() if name.endswith(_COMPUTED)}
    if not paths:
        return {}

    @jax.jit  # which leaves out what is not returned
    def compute() -> dict[str, Any]:
        x = jnp.zeros(example.shape, example.dtype)
        variables = module.init(jax.random.key(0), x, train=False)
        leaves = traverse_util.flatten_dict(variables)
        return {name: leaves[path] for name, path in paths.items()}

    return jax.device_get(compute())


def torch_name(path: _Path) -> str:
    """Returns the name of a variable in a state dict.

    Args:
        path: Of the variable: its collection, modules and name.
    """
    return ".".join((*path[1:-1], _TORCH_LEAF.get(path[-1], path[-1])))


def _to_flax(path: _Path, array: np.ndarray, ndim: int) -> np.ndarray:
    if path[-1] == "kernel" and {array.ndim, ndim} == {2, 4}:
        array = _as_linear(array) if ndim == 2 else array[:, :, None, None]
    if path[-1] in ("scale", "bias") and (array.ndim, ndim) == (1, 3):
        array = array[:, None, None]  # GCNet's normalisation, from timm's
    axes = _TO_FLAX.get(array.ndim)
    return array.transpose(axes) if path[-1] == "kernel" and axes else array


def _as_linear(array: np.ndarray) -> np.ndarray:
    """Returns `[O, I]` of a 1x1 convolution's `[O, I, 1, 1]`, others as they are."""
    return array[:, :, 0, 0] if array.shape[2:] == (1, 1) else array


def _torch_shape(path: _Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    return tuple(shape[i] for i in np.argsort(_TO_FLAX[len(shape)]))
