"""What a program does before it uses JAX: its memory and its caches on the host."""

import ctypes
import importlib.util
import os
import pathlib
import platform

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_ACCELERATORS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")


def prepare() -> None:
    """Keeps freed memory, and compiled programs from one run to the next.

    Call it before JAX is used.
    """
    keep_freed_memory()
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))


def cache_folder() -> pathlib.Path:
    """Returns the folder for what can be made again, which may not exist yet."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "jaxattn"


def keep_freed_memory() -> None:
    """Makes the C library keep what is freed for the next who asks.

    A train step on a CPU takes hundreds of megabytes at once, and frees them at its
    end. By default glibc gives them back to the system, which must find and clear
    200,000 pages for the next step: a third of the time of small networks. A process
    holds on to the most it has needed.

    Call it before JAX is used: threads keep the arena that they began with, and only
    the first can be that large. It does nothing with another C library, or where JAX
    runs on an accelerator.
    """
    if platform.libc_ver()[0] != "glibc" or _has_accelerator():
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never


def _has_accelerator() -> bool:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    return any(importlib.util.find_spec(name) for name in _ACCELERATORS)
