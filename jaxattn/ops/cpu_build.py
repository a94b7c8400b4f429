"""The C++ operations of this folder, compiled into one library on the user's machine.

What asks for it and what calls it is `cpu_kernels`.
"""

import concurrent.futures
import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import pathlib
import platform
import shutil
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

import jax

from jaxattn.atomic import write_json
from jaxattn.errors import UserError
from jaxattn.host import cache_folder, can_write

_FOLDER = pathlib.Path(__file__).parent
_SOURCES, _HEADERS = (sorted(_FOLDER.glob(f"*.{end}")) for end in ("cc", "h"))
_COMPILER_TIMEOUT_S = 300.0
_WAIT_FOR_OTHERS_S = 60.0
REMEMBERED_S = 24 * 3600.0  # a machine that was short of memory may not be any more
_told: set[str] = set()  # by this process; what fails at one start fails at the next
_NO_COMPILER = (
    "no C++ compiler: install g++ 10 or newer, or name one in the environment variable"
    " CXX"
)
_NO_ONEDNN = (
    "no oneDNN: pip install onednn-devel-cpu-gomp, or install your system's development"
    " package of it (libdnnl-dev)"
)
_HEADER = pathlib.Path("oneapi", "dnnl", "dnnl.hpp")


# Compiling ---------------------------------------------------------------------------


def compiled_path() -> pathlib.Path:
    """Returns where the compiled library is, or would be.

    A new version of its sources or of jaxlib has another path, and so has another kind
    of machine with the same home.
    """
    kind = f"{metadata.version('jaxlib')} {sys.platform} {platform.machine()}"
    version = hashlib.sha256(kind.encode())
    for source in (*_SOURCES, *_HEADERS):
        version.update(source.read_bytes())
    return cache_folder() / f"cpu-kernels-{version.hexdigest()[:16]}.so"


def compile_library(is_alone: bool) -> pathlib.Path:
    """Compiles the library into its place, whole or not at all; returns its path.

    Args:
        is_alone: Whether no other process does: see `alone`.

    Raises:
        UserError: If there is no compiler or no oneDNN, or if they fail.
    """
    path, prefix = compiled_path(), _find_onednn()
    if is_alone:  # else what looks left by a killed process may be at work
        for left in path.parent.glob("cpu-kernels-building-*"):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix="cpu-kernels-building-", ignore_cleanup_errors=True
    ) as folder:
        made = pathlib.Path(folder) / path.name
        flags = ["-fopenmp", *(_flags(prefix) if prefix else ())]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            compile_one = functools.partial(_compile_source, made.parent, flags)
            objects = list(pool.map(compile_one, _SOURCES))
        _run_compiler("-shared", *objects, *flags, "-ldnnl", "-o", str(made))
        load(made)  # one that cannot be loaded is not kept
        made.replace(path)
    _record_path().unlink(missing_ok=True)
    return path


def _compile_source(
    folder: pathlib.Path, flags: Sequence[str], source: pathlib.Path
) -> str:
    """Returns the object file of a source."""
    made = str(folder / f"{source.stem}.o")
    include = f"-I{jax.ffi.include_dir()}"
    options = ("-std=c++20", "-O3", "-fPIC", "-w", include, *flags)
    _run_compiler(*options, "-c", str(source), "-o", made)
    return made


def find_compiler() -> str:
    """Returns the path of the compiler.

    Raises:
        UserError: If there is none.
    """
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise UserError(_NO_COMPILER)
    return compiler


def _find_onednn() -> pathlib.Path | None:
    """Returns its header: of the environment if pip installed it there, else any."""
    prefixes = (sys.prefix, sys.base_prefix, site.getuserbase(), "/usr/local", "/usr")
    named = (os.environ.get(name, "") for name in ("CPATH", "CPLUS_INCLUDE_PATH"))
    folders = [pathlib.Path(prefix, "include") for prefix in prefixes]
    folders += [pathlib.Path(f) for path in named for f in path.split(":") if f]
    return next((f / _HEADER for f in folders if (f / _HEADER).exists()), None)


def _flags(header: pathlib.Path) -> list[str]:
    """Of a package of pip; the compiler knows the system's without."""
    prefix = header.parents[len(_HEADER.parts)]
    library = prefix / "lib"
    is_there = (library / "libdnnl.so").exists()
    flags = [f"-L{library}", f"-Wl,-rpath,{library}"] if is_there else []
    return [f"-I{prefix / 'include'}", *flags]


def _run_compiler(*arguments: str) -> None:
    try:
        done = subprocess.run(
            [find_compiler(), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},  # `_reason` reads English
            timeout=_COMPILER_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"the C++ compiler: not done after {_COMPILER_TIMEOUT_S:.0f} s"
        ) from error
    if done.returncode:
        full = os.strerror(errno.ENOSPC)
        if full in done.stderr:
            raise OSError(errno.ENOSPC, full, str(cache_folder()))
        raise UserError(_reason(done.stderr))


def _reason(stderr: str) -> str:
    if "dnnl" in stderr and ("No such file" in stderr or "cannot find" in stderr):
        return _NO_ONEDNN
    lines = [line for line in stderr.splitlines() if "error" in line] or ["failed"]
    return f"the C++ compiler: {lines[0].strip()[:300]}"


def load(path: pathlib.Path) -> ctypes.CDLL:
    """Loads a library.

    Raises:
        UserError: If that is not possible.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(
            f"the library of the CPU kernels cannot be loaded ({error})"
        ) from error


# What may be in the way --------------------------------------------------------------


def find_obstacle() -> str | None:
    """Returns what is in the way of compiling, and what to do; None if nothing is."""
    folder = cache_folder()
    try:
        find_compiler()
    except UserError as error:
        return str(error)
    if _find_onednn() is None:
        return _NO_ONEDNN
    if not can_write(folder):
        return f"{folder} cannot be written: XDG_CACHE_HOME names another folder"
    return _remembered()


@contextlib.contextmanager
def alone() -> Iterator[bool]:
    """Keeps other processes from building; they wait, and find what was built.

    Yields:
        Whether it does. It is not needed: a library takes its place whole.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "cpu-kernels.lock", "w") as file:
        deadline = time.monotonic() + _WAIT_FOR_OTHERS_S
        while (is_alone := _lock(file.fileno())) is None:
            say("waiting for another process, which builds the CPU kernels")
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        yield bool(is_alone)


def _lock(descriptor: int) -> bool | None:
    """Returns whether a file is locked now; None if another process holds it."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:  # some network file systems have no locks
        return False
    return fcntl is not None


def _remembered() -> str | None:
    """Returns what failed before, if nothing has changed since."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(_record_path().read_text())
        age_s = time.time() - _record_path().stat().st_mtime
        if record["tools"] == _tools() and 0 <= age_s < REMEMBERED_S:
            return str(record["reason"])
    return None


def remember(reason: str) -> str:
    """Keeps why compiling has failed for the next start, and returns it with advice."""
    reason = f"{reason} (jaxattn build-cpu-kernels tries again)"
    with contextlib.suppress(OSError):  # of a full disk
        write_json(_record_path(), {"reason": reason, "tools": _tools()})
    return reason


def _record_path() -> pathlib.Path:
    return compiled_path().with_suffix(".failed")


def _tools() -> list[Any]:
    """What the compiler and oneDNN are known by: each file with its time and size."""
    files = (find_compiler(), _find_onednn())
    stats = [(str(path), os.stat(path)) for path in files if path]
    return [[path, stat.st_mtime, stat.st_size] for path, stat in stats]


def say(text: str) -> None:
    """Leaves a line, in place of what a terminal shows of a phase; once a process."""
    if text not in _told:
        _told.add(text)
        erase = "\r\x1b[K" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{erase}{text}\n")
        sys.stderr.flush()
