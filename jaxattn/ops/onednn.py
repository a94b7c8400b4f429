"""oneDNN's convolutions on CPUs, once `jaxattn build-cpu-kernels` has built them.

XLA's CPU backend has no fast weight gradients, nor depthwise convolutions. `onednn.cc`
calls those of oneDNN from inside a compiled program. It is compiled on the user's
machine, into a cache folder, and never needed: without it convolutions are XLA's.
The environment variable JAXATTN_CPU_KERNELS decides otherwise: with 0 the library is
neither built nor loaded, with 1 it must be there. Unset, it is used where it has been
built.
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
from collections.abc import Iterator
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.errors import UserError, choose
from jaxattn.host import cache_folder
from jaxattn.ops.primitive import Window, make_convolution, output_shape

_SOURCE = pathlib.Path(__file__).with_suffix(".cc")
_CALLS = (
    "jaxattn_conv_forward",
    "jaxattn_conv_input_gradient",
    "jaxattn_conv_kernel_gradient",
)
_VARIABLE = "JAXATTN_CPU_KERNELS"
_disabled = 0


# Building --------------------------------------------------------------------------


def compiled_path() -> pathlib.Path:
    """Returns where the compiled library is, or would be.

    A new version of its source or of jaxlib has another path.
    """
    version = hashlib.sha256(_SOURCE.read_bytes() + metadata.version("jaxlib").encode())
    return cache_folder() / f"onednn-{version.hexdigest()[:16]}.so"


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
            str(_SOURCE),
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
    """Whether convolutions traced now are oneDNN's.

    They are on one CPU device, if the library has been built: XLA cannot divide its
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
    """Traces what is inside with XLA's convolutions, which every machine has."""
    global _disabled
    _disabled += 1
    try:
        yield
    finally:
        _disabled -= 1


@functools.cache
def _registered_suffix() -> str | None:
    """Registers the calls, and returns what their names end in, or None without any.

    A name in XLA's registry keeps its first function for as long as the process lives,
    and a second library, built in a notebook or found in another cache folder, has
    functions of its own. So a name has its library's path in it, by which the system
    knows a library that is already loaded.
    """
    path = compiled_path()
    if not path.exists():
        return None
    library = _load(path)
    suffix = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    for name in _CALLS:
        capsule = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(f"{name}_{suffix}", capsule, platform="cpu")
    return suffix


def _load(path: pathlib.Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(
            f"{path} cannot be loaded ({error}); run jaxattn build-cpu-kernels again,"
            " or remove it"
        ) from error


def _output(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    shape = output_shape(x.shape, kernel.shape, window)
    return _call("jaxattn_conv_forward", shape, x, kernel, window)


def _input_gradient(
    kernel: jax.Array, g: jax.Array, window: Window, size: tuple[int, int]
) -> jax.Array:
    shape = (len(g), *size, kernel.shape[2] * window.groups)
    return _call("jaxattn_conv_input_gradient", shape, kernel, g, window)


def _kernel_gradient(
    x: jax.Array, g: jax.Array, window: Window, size: tuple[int, int]
) -> jax.Array:
    shape = (*size, x.shape[-1] // window.groups, g.shape[-1])
    return _call("jaxattn_conv_kernel_gradient", shape, x, g, window)


_conv = make_convolution(
    "onednn_conv", _output, _input_gradient, _kernel_gradient, one_by_one=True
)


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
) -> jax.Array:
    """Convolves as `jaxattn.ops.conv.conv2d`, float32, where `is_enabled`."""
    return _conv(x, kernel, Window(stride, padding, dilation, groups))


def _call(
    name: str,
    shape: tuple[int, ...],
    a: jax.Array,
    b: jax.Array,
    window: Window,
) -> jax.Array:
    call = jax.ffi.ffi_call(
        f"{name}_{_registered_suffix()}",
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    attributes = {key: np.int64(value) for key, value in window._asdict().items()}
    return call(a, b, **attributes)
