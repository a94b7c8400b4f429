"""Our own C++ operations on CPUs.

Each `.cc` file beside this one holds some; a module of its name calls them from inside
compiled programs. On the user's machine they become one library in a cache folder. It
is never needed: without it XLA's operations do the same, more slowly.

Who builds it. `prepare` does, once and unasked, where a program is about to compute: in
`jaxattn.training.build`, `jaxattn.inference.Predictor` and `measure_latency`, and so in
every command that trains, evaluates, predicts or measures. That is on one CPU device
of Linux on x86-64, where a compiler and oneDNN are at hand; what goes wrong is a line
and no error. Neither an import of jaxattn nor a block in a user's own network starts a
compiler: they use what is there, which `jaxattn build-cpu-kernels` builds, too, on any
system.

The environment variable JAXATTN_CPU_KERNELS decides otherwise: with 0 the library is
neither built nor loaded, with 1 it must be there, and is built if it can be.
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
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

import jax
import numpy as np

from jaxattn.atomic import write_json
from jaxattn.errors import UserError, choose, describe_fault
from jaxattn.host import cache_folder, can_write

_FOLDER = pathlib.Path(__file__).parent
_SOURCES, _HEADERS = (sorted(_FOLDER.glob(f"*.{end}")) for end in ("cc", "h"))
_VARIABLE = "JAXATTN_CPU_KERNELS"
_disabled = 0


# Building unasked --------------------------------------------------------------------

_COMPILER_TIMEOUT_S = 300.0
_WAIT_FOR_OTHERS_S = 60.0
_REMEMBERED_S = 24 * 3600.0  # a machine that was short of memory may not be any more
_told: set[str] = set()  # by this process; what fails at one start fails at the next


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
        _say("building the CPU kernels, once: about 10 seconds")
        try:
            build()
        except UserError as error:
            raise UserError(f"{_VARIABLE}=1: {error}") from error
    elif is_built_unasked():
        try:
            obstacle = find_obstacle() or _build_once()
        except OSError as error:  # a full disk
            obstacle = describe_fault(error)
        if obstacle:
            _say(f"CPU kernels not built: {obstacle}; XLA's slower operations instead")


def is_built_unasked() -> bool:
    """Whether this is a system where `prepare` builds the library by itself."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def find_obstacle() -> str | None:
    """Returns what keeps `prepare` from building, and what to do; None if nothing."""
    folder = cache_folder()
    try:
        _find_compiler()
    except UserError as error:
        return str(error)
    if _find_onednn() is None:
        return _NO_ONEDNN
    if not can_write(folder):
        return f"{folder} cannot be written: XDG_CACHE_HOME names another folder"
    return _remembered()


def _build_once() -> str | None:
    """Builds, unless another process has just done it; returns what has failed."""
    with _alone() as is_alone:
        _registered_suffix.cache_clear()
        if _registered_suffix() is not None:
            return None
        _say("building the CPU kernels, once: about 10 seconds")
        start = time.monotonic()
        try:
            _compile(is_alone)
        except UserError as error:
            return _remember(str(error))
        _say(f"CPU kernels built in {time.monotonic() - start:.0f} s")
        return None


@contextlib.contextmanager
def _alone() -> Iterator[bool]:
    """Keeps other processes from building; they wait, and find what was built.

    Yields:
        Whether it does. It is not needed: a library takes its place whole.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "cpu-kernels.lock", "w") as file:
        deadline = time.monotonic() + _WAIT_FOR_OTHERS_S
        while (is_alone := _lock(file.fileno())) is None:
            _say("waiting for another process, which builds the CPU kernels")
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
        if record["tools"] == _tools() and 0 <= age_s < _REMEMBERED_S:
            return str(record["reason"])
    return None


def _remember(reason: str) -> str:
    reason = f"{reason} (jaxattn build-cpu-kernels tries again)"
    with contextlib.suppress(OSError):  # of a full disk
        write_json(_record_path(), {"reason": reason, "tools": _tools()})
    return reason


def _record_path() -> pathlib.Path:
    return compiled_path().with_suffix(".failed")


def _tools() -> list[Any]:
    """What the compiler and oneDNN are known by: each file with its time and size."""
    files = (_find_compiler(), _find_onednn())
    stats = [(str(path), os.stat(path)) for path in files if path]
    return [[path, stat.st_mtime, stat.st_size] for path, stat in stats]


def _say(text: str) -> None:
    """Leaves a line, in place of what a terminal shows of a phase; once a process."""
    if text not in _told:
        _told.add(text)
        erase = "\r\x1b[K" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{erase}{text}\n")
        sys.stderr.flush()


# Building ----------------------------------------------------------------------------

_NO_COMPILER = (
    "no C++ compiler: install g++ 10 or newer, or name one in the environment variable"
    " CXX"
)
_NO_ONEDNN = (
    "no oneDNN: pip install onednn-devel-cpu-gomp, or install your system's development"
    " package of it (libdnnl-dev)"
)
_HEADER = pathlib.Path("oneapi", "dnnl", "dnnl.hpp")


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


def build() -> pathlib.Path:
    """Compiles the library, whatever there is and has failed, and returns its path.

    Raises:
        UserError: If JAXATTN_CPU_KERNELS is 0, if there is no compiler or no oneDNN, or
            if they fail.
    """
    if is_refused():
        raise UserError(f"{_VARIABLE}=0: never built; unset the variable to build")
    _find_compiler()  # before a folder is made
    with _alone() as is_alone:
        return _compile(is_alone)


def _compile(is_alone: bool) -> pathlib.Path:
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
        _load(made)  # one that cannot be loaded is not kept
        made.replace(path)
    _record_path().unlink(missing_ok=True)
    _registered_suffix.cache_clear()  # this process, too, may use it now
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


def _find_compiler() -> str:
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
            [_find_compiler(), *arguments],
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
                f"{_VARIABLE}=1: there is no {compiled_path()} that can be loaded; run"
                " jaxattn build-cpu-kernels, or unset the variable"
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
    path = compiled_path()
    if not path.exists():
        return None
    try:
        _load(path)
    except UserError:  # its oneDNN has gone, or it is another system's
        return None
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


def count(name: str, *numbers: int) -> int:
    """Returns the int64 that a function of the library makes of others."""
    function = getattr(_load(compiled_path()), name)
    function.restype = ctypes.c_int64
    return function(*map(ctypes.c_int64, numbers))


def _load(path: pathlib.Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(
            f"the library of the CPU kernels cannot be loaded ({error})"
        ) from error
