"""What a program does before it uses JAX: its memory and its caches on the host."""

import atexit
import contextlib
import functools
import importlib.util
import logging
import os
import pathlib
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator

_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ACCELERATORS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")


def prepare() -> None:
    """Takes memory in huge pages, and keeps compiled programs for the next run.

    Call it first in a program: it may start it anew.
    """
    if _wants_huge_pages():
        # glibc reads it once, at the start of a process.
        os.environ[_TUNABLES] = _HUGE_PAGES
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    keep_compiled_programs()
    _keep_matplotlib_quiet()


def keep_compiled_programs() -> None:
    """Keeps compiled programs for the next run, where they can be kept."""
    import jax

    folder = cache_folder() / "xla"
    is_named = jax.config.values["jax_compilation_cache_dir"] is not None
    if not is_named and _can_write(folder):  # else JAX would warn at every program
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _keep_matplotlib_quiet() -> None:
    """Names a folder for Matplotlib's caches where its own cannot be written."""
    own = (_user_folder("XDG_CONFIG_HOME", ".config"), _caches())
    if "MPLCONFIGDIR" in os.environ or all(_can_write(p / "matplotlib") for p in own):
        return
    os.environ["MPLCONFIGDIR"] = folder = tempfile.mkdtemp(prefix="matplotlib-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def quiet_tensorflow() -> None:
    """Has TensorFlow keep its opinions to itself; call it before that is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


@contextlib.contextmanager
def quiet_absl() -> Iterator[None]:
    """Mutes the logger of Google's libraries, for calls whose errors are raised."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        absl.setLevel(level)


def hardware(platform_name: str) -> str:
    """Returns the name of what programs run on.

    Args:
        platform_name: "cpu", or another one of JAX.
    """
    if platform_name == "cpu":
        return describe_cpu()
    import jax

    return jax.devices()[0].device_kind


def describe_cpu() -> str:
    """Returns the number of cores, the processor, and its widest vectors if known."""
    model = _cpu_fields().get("model name", platform.machine())
    widest = next((f" ({f})" for f in ("avx512f", "avx2") if has_cpu_flag(f)), "")
    return f"{os.cpu_count()} x {model}{widest}"


@functools.cache
def has_cpu_flag(flag: str) -> bool:
    """Whether the processor has instructions, as far as can be told.

    Args:
        flag: Their name in Linux's /proc/cpuinfo.
    """
    return flag in _cpu_fields().get("flags", "").split()


def _cpu_fields() -> dict[str, str]:
    """Returns what Linux says of a processor, elsewhere nothing."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
        return {key.strip(): value.strip() for key, value in fields.items()}
    return {}


def cache_folder() -> pathlib.Path:
    """Returns the folder for what can be made again, which may not exist yet."""
    return _caches() / "jaxattn"


def _caches() -> pathlib.Path:
    return _user_folder("XDG_CACHE_HOME", ".cache")


def _user_folder(variable: str, default: str) -> pathlib.Path:
    """Returns a folder of the user; one that cannot be where the user has no home."""
    if given := os.environ.get(variable):
        return pathlib.Path(given)
    with contextlib.suppress(RuntimeError):  # a container's user without a name
        return pathlib.Path.home() / default
    return pathlib.Path(os.devnull, default)


def _can_write(folder: pathlib.Path) -> bool:
    """Whether files can be written to a folder, which is made if it is missing."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK | os.X_OK)
    return False


def huge_pages_setting() -> str:
    """Returns for whom the system has huge pages: "always", "madvise" or "never"."""
    match = re.search(r"\[(\w+)\]", _SETTING.read_text()) if _SETTING.exists() else None
    return match[1] if match else "never"


def _wants_huge_pages() -> bool:
    """Whether malloc should ask for huge pages, and does not yet.

    A train step on a CPU takes hundreds of megabytes at once and gives them back at
    its end. In pages of 4 kB the system must find and clear 200,000 for the next step:
    a third of the time of small networks. Where huge pages are for those who ask,
    glibc 2.35 and newer ask if told so.
    """
    if _TUNABLES in os.environ or _has_accelerator():
        return False
    library, version = platform.libc_ver()
    is_able = library == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
    return is_able and huge_pages_setting() == "madvise"


def _has_accelerator() -> bool:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    return any(importlib.util.find_spec(name) for name in _ACCELERATORS)
