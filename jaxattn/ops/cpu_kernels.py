"""Our own C++ operations on CPUs, once `jaxattn build-cpu-kernels` has built them.

Each `.cc` file beside this one holds some; a module of its name calls them from inside
compiled programs. On the user's machine they become one library in a cache folder. It
is never needed: without it XLA's operations do the same. The environment variable
JAXATTN_CPU_KERNELS decides otherwise: with 0 the library is neither built nor loaded,
with 1 it must be there. Unset, it is used where it has been built.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np

from jaxattn.errors import UserError, choose
from jaxattn.host import cache_folder

_FOLDER = pathlib.Path(__file__).parent
_SOURCES, _HEADERS = (sorted(_FOLDER.glob(f"*.{end}")) for end in ("cc", "h"))
_VARIABLE = "JAXATTN_CPU_KERNELS"
_disabled = 0


# Building --------------------------------------------------------------------------


def compiled_path() -> pathlib.Path:
    """Returns where the compiled library is, or would be.

    A new version of its sources or of jaxlib has another path.
    """
    version = hashlib.sha256(metadata.version("jaxlib").encode())
    for source in (*_SOURCES, *_HEADERS):
        version.update(source.read_bytes())
    return cache_folder() / f"cpu-kernels-{version.hexdigest()[:16]}.so"


def build() -> pathlib.Path:
    """Compiles the library and returns its path.

    Raises:
        UserError: If JAXATTN_CPU_KERNELS is 0, if there is no compiler or no oneDNN, or
            if they fail.
    """
    if is_refused():
        raise UserError(f"{_VARIABLE}=0: never built; unset the variable to build")
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise UserError(
            "no C++ compiler: install g++ 10 or newer, or name one in the environment"
            " variable CXX"
        )
    prefix, path = pathlib.Path(sys.prefix), compiled_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of the environment if pip installed it there, else of the system.
    library = prefix / "lib" / "libdnnl.so"
    flags = [f"-L{library.parent}", f"-Wl,-rpath,{library.parent}"]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = pathlib.Path(folder) / path.name
        command = [
            *(compiler, "-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp", "-w"),
            f"-I{jax.ffi.include_dir()}",
            f"-I{prefix / 'include'}",
            *map(str, _SOURCES),
            *(flags if library.exists() else ()),
            *("-ldnnl", "-o", str(made)),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(_reason(done.stderr))
        _load(made)  # one that cannot be loaded is not kept
        made.replace(path)
    _registered_suffix.cache_clear()  # this process, too, may use it now
    return path


def _reason(stderr: str) -> str:
    if "dnnl" in stderr and ("No such file" in stderr or "cannot find" in stderr):
        return (
            "no oneDNN: pip install onednn-devel-cpu-gomp, or install your system's"
            " development package of it (libdnnl-dev)"
        )
    lines = [line for line in stderr.splitlines() if "error" in line] or ["failed"]
    return f"the C++ compiler: {lines[0]}"


# Using -----------------------------------------------------------------------------


def is_enabled() -> bool:
    """Whether what is traced now calls the library.

    It does on one CPU device, if the library has been built: XLA cannot divide its
    calls over devices.

    Raises:
        UserError: If JAXATTN_CPU_KERNELS is 1 and the library has not been built, or
            if it is neither 0 nor 1.
    """
    if is_refused() or _disabled:
        return False
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return False
    if _registered_suffix() is None:
        if os.environ.get(_VARIABLE) == "1":
            raise UserError(
                f"{_VARIABLE}=1: there is no {compiled_path()}; run jaxattn"
                " build-cpu-kernels, or unset the variable"
            )
        return False
    return True


def is_refused() -> bool:
    """Whether JAXATTN_CPU_KERNELS is 0: then the library is never loaded."""
    if value := os.environ.get(_VARIABLE):
        choose(_VARIABLE, value, ("0", "1"))
    return value == "0"


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Traces what is inside with XLA's operations, which every machine has."""
    global _disabled
    _disabled += 1
    try:
        yield
    finally:
        _disabled -= 1


@functools.cache
def _registered_suffix() -> str | None:
    """Loads the library and returns what its calls' names end in, or None without one.

    A name in XLA's registry keeps its first function for as long as the process lives,
    and a second library, built in a notebook or found in another cache folder, has
    functions of its own. So a name has its library's path in it, by which the system
    knows a library that is already loaded.
    """
    path = compiled_path()
    if not path.exists():
        return None
    _load(path)
    return hashlib.sha256(str(path).encode()).hexdigest()[:16]


@functools.cache
def _registered(name: str, suffix: str) -> str:
    """Registers a function of the library as a call, and returns the call's name."""
    target = f"{name}_{suffix}"
    capsule = jax.ffi.pycapsule(getattr(_load(compiled_path()), name))
    jax.ffi.register_ffi_target(target, capsule, platform="cpu")
    return target


def call(
    name: str,
    results: Any,
    *operands: jax.Array,
    in_place: Mapping[int, int] | None = None,
    **attributes: float,
) -> Any:
    """Calls a function of the library, where `is_enabled`.

    Args:
        name: Of its symbol.
        results: `jax.ShapeDtypeStruct` of the result, or a sequence of them.
        *operands: Its arrays, in row-major order.
        in_place: Which operands are overwritten by which results, by their numbers; XLA
            copies those that are needed again.
        **attributes: Its numbers: int64, or float64 where a float is given.
    """
    suffix = _registered_suffix()
    assert suffix is not None, "is_enabled() was not asked"
    numbers = {key: np.asarray(value)[()] for key, value in attributes.items()}
    target = _registered(name, suffix)
    # Mapped by `jax.vmap`, it is a loop.
    function = jax.ffi.ffi_call(
        target,
        results,
        vmap_method="sequential",
        input_output_aliases=None if in_place is None else dict(in_place),
    )
    return function(*operands, **numbers)


def _load(path: pathlib.Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(
            f"{path} cannot be loaded ({error}); run jaxattn build-cpu-kernels again,"
            " or remove it"
        ) from error
