"""Our own C++ operations on CPUs.

Each `.cc` file beside this one holds some; a module of its name calls them from inside
compiled programs. On the user's machine they become one library in a cache folder. It
is never needed: without it XLA's operations do the same, more slowly.

Who builds it. `prepare` does, once and unasked, where a program is about to compute: in
`jaxattn.training.build` and where inference compiles a network, and so in every command
that trains, evaluates, predicts or measures. That is on one CPU device
of Linux on x86-64, where a compiler and oneDNN are at hand; what goes wrong is a line
and no error. Neither an import of jaxattn nor a block in a user's own network starts a
compiler: they use what is there, which `jaxattn build-cpu-kernels` builds, too, on any
system.

The environment variable JAXATTN_CPU_KERNELS decides otherwise: with 0 the library is
neither built nor loaded, with 1 it must be there, and is built if it can be.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxattn.errors import UserError, choose, describe_fault
from jaxattn.ops import cpu_build

_VARIABLE = "JAXATTN_CPU_KERNELS"
_BUILDING = "building the CPU kernels, once: about 10 seconds"
_disabled = 0


# Building unasked --------------------------------------------------------------------


def prepare() -> None:
    """Builds the library where it is wanted, possible and not there yet.

    Says in one line that it builds, and in one what that came to, or why there is none.
    A failure of the compiler is remembered until it or oneDNN is another one, for a
    day at most.

    Raises:
        UserError: If JAXATTN_CPU_KERNELS is 1 and the library cannot be built, or if
            it is neither 0 nor 1.
    """
    if not _is_wanted() or _registered_suffix() is not None:
        return
    if _is_demanded():
        cpu_build.say(_BUILDING)
        try:
            build()
        except UserError as error:
            raise UserError(f"{_VARIABLE}=1: {error}") from error
    elif is_built_unasked():
        try:
            obstacle = cpu_build.find_obstacle() or _build_once()
        except OSError as error:  # a full disk
            obstacle = describe_fault(error)
        if obstacle:
            cpu_build.say(
                f"CPU kernels not built: {obstacle}; XLA's slower operations instead"
            )


def is_built_unasked() -> bool:
    """Whether this is a system where `prepare` builds the library by itself."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _build_once() -> str | None:
    """Builds, unless another process has just done it; returns what has failed."""
    with cpu_build.alone() as is_alone:
        _registered_suffix.cache_clear()
        if _registered_suffix() is not None:
            return None
        cpu_build.say(_BUILDING)
        start = time.monotonic()
        try:
            _compile(is_alone)
        except UserError as error:
            return cpu_build.remember(str(error))
        cpu_build.say(f"CPU kernels built in {time.monotonic() - start:.0f} s")
        return None


def build() -> pathlib.Path:
    """Compiles the library, whatever there is and has failed, and returns its path.

    Raises:
        UserError: If JAXATTN_CPU_KERNELS is 0, if there is no compiler or no oneDNN, or
            if they fail.
    """
    if is_refused():
        raise UserError(f"{_VARIABLE}=0: never built; unset the variable to build")
    cpu_build.find_compiler()  # before a folder is made
    with cpu_build.alone() as is_alone:
        return _compile(is_alone)


def _compile(is_alone: bool) -> pathlib.Path:
    path = cpu_build.compile_library(is_alone)
    _registered_suffix.cache_clear()  # this process, too, may use it now
    return path


# Using -----------------------------------------------------------------------------


def is_enabled() -> bool:
    """Whether what is traced now calls the library.

    It does on one CPU device, if the library has been built: XLA cannot divide its
    calls over devices.

    Raises:
        UserError: If JAXATTN_CPU_KERNELS is 1 and the library has not been built, or
            if it is neither 0 nor 1.
    """
    if not _is_wanted():
        return False
    if _registered_suffix() is None:
        if _is_demanded():
            raise UserError(
                f"{_VARIABLE}=1: there is no {cpu_build.compiled_path()} that can be"
                " loaded; run jaxattn build-cpu-kernels, or unset the variable"
            )
        return False
    return True


def name_of_convolutions() -> str:
    """Returns whose convolutions are traced now, for the record."""
    return "oneDNN" if is_enabled() else "XLA"


def _is_wanted() -> bool:
    """Whether the library would be used if it were there."""
    if is_refused() or _disabled:
        return False
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def _is_demanded() -> bool:
    return os.environ.get(_VARIABLE) == "1"


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
    path = cpu_build.compiled_path()
    if not path.exists():
        return None
    try:
        cpu_build.load(path)
    except UserError:  # its oneDNN has gone, or it is another system's
        return None
    return hashlib.sha256(str(path).encode()).hexdigest()[:16]


def _suffix() -> str:
    suffix = _registered_suffix()
    assert suffix is not None, "is_enabled() was not asked"
    return suffix


@functools.cache
def _library(suffix: str) -> ctypes.CDLL:
    """Returns the library of a suffix, whose path is not made out again each time."""
    del suffix
    return cpu_build.load(cpu_build.compiled_path())


@functools.cache
def _registered(name: str, suffix: str) -> str:
    """Registers a function of the library as a call, and returns the call's name."""
    target = f"{name}_{suffix}"
    capsule = jax.ffi.pycapsule(getattr(_library(suffix), name))
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
    numbers = {key: np.asarray(value)[()] for key, value in attributes.items()}
    target = _registered(name, _suffix())
    # Mapped by `jax.vmap`, it is a loop.
    function = jax.ffi.ffi_call(
        target,
        results,
        vmap_method="sequential",
        input_output_aliases=None if in_place is None else dict(in_place),
    )
    return function(*operands, **numbers)


def count(name: str, *numbers: int) -> int:
    """Returns the int64 that a function of the library makes of others."""
    function = getattr(_library(_suffix()), name)
    function.restype = ctypes.c_int64
    return function(*map(ctypes.c_int64, numbers))
