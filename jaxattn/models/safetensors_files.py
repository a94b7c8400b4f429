"""State dicts as `.safetensors` files: arrays by name, without PyTorch and any code."""

import importlib
import os
import pathlib
from collections.abc import Mapping
from types import ModuleType

import jax.numpy as jnp
import numpy as np

from jaxattn.atomic import write_atomically
from jaxattn.errors import UserError, reason, reraise_machine_fault

SUFFIX = ".safetensors"
# By the format's names; NumPy alone has no bfloat16.
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a `.safetensors` file.

    Args:
        path: The file.

    Returns:
        Arrays by name, those of floating-point numbers float32.

    Raises:
        UserError: If the package safetensors is not installed, or the file cannot be
            read, is damaged or holds numbers of another kind.
    """
    safetensors = _import_safetensors()
    try:
        content = safetensors.deserialize(pathlib.Path(path).read_bytes())
        return {name: _to_array(stored) for name, stored in content}
    except OSError as error:
        reraise_machine_fault(error)
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except KeyError as error:
        kind = error.args[0]
        raise UserError(f"{path}: holds numbers of type {kind}, not weights") from error
    except Exception as error:  # the package's own, which is no subclass of ValueError
        reraise_machine_fault(error)
        raise UserError(
            f"{path}: not a file of safetensors ({reason(error)})"
        ) from error


def write_safetensors(
    path: str | os.PathLike[str], state: Mapping[str, np.ndarray]
) -> None:
    """Writes a state dict as a `.safetensors` file, whole or not at all.

    Args:
        path: The file; its folder exists.
        state: Arrays by PyTorch's names.

    Raises:
        UserError: If the package safetensors is not installed.
        OSError: If the file cannot be written; names the path.
    """
    _import_safetensors()
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
    # Readers in PyTorch refuse a file that does not say that it is for them.
    write_atomically(path, save(arrays, metadata={"format": "pt"}))


def _to_array(stored: Mapping) -> np.ndarray:
    dtype = np.dtype(_DTYPES[stored["dtype"]])
    array = np.frombuffer(stored["data"], dtype).reshape(stored["shape"])
    # bfloat16 is none of NumPy's own kinds.
    is_float = dtype.kind == "f" or stored["dtype"] == "BF16"
    return array.astype(np.float32) if is_float else array


def _import_safetensors() -> ModuleType:
    try:
        return importlib.import_module("safetensors")
    except ImportError as error:
        raise UserError(
            "safetensors is needed for its files: pip install safetensors"
        ) from error
