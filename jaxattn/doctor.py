"""Checks of a machine, and of a workdir's checkpoints: a line each, with what to do."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

import jax

import jaxattn
from jaxattn import host
from jaxattn.data.checking import find_bad_images
from jaxattn.data.datasets.registry import load_data
from jaxattn.data.source import Data, Source
from jaxattn.errors import UserError, describe_fault, find_device_fault
from jaxattn.ops import cpu_build, cpu_kernels
from jaxattn.packages import TENSORFLOW, is_installed
from jaxattn.paths import local_path
from jaxattn.training.checkpoints.checkpoint import BEST_PREFIX, Checkpoints
from jaxattn.training.checkpoints.trained import network_target

OK, WARNING, FAIL = "ok", "warning", "FAIL"

# A checkpoint of ResNet-101 with momentum and average is 0.5 GB, and a run keeps four.
_MIN_FREE_BYTES = 2 * 2**30
_REQUIRED = ("jax", "jaxlib", "flax", "optax", "numpy")
# What is off without a package.
_USES = {
    "orbax-checkpoint": "training and trained networks",
    "ml-collections": "training by main.py",
    "matplotlib": "figures, and evaluate, compare, attention-maps and bn-landscape",
    "tqdm": "progress bars, and predict and evaluate",
    "scikit-learn": "the data set digits",
    "pillow": "image files, and the data set digits",
    "grain": "streamed data: image folders, and what is above 1 GiB",
    "tensorflow-datasets": "data sets of TFDS",
    "importlib_resources": "data sets of TFDS",
    "clu": "TensorBoard",
    TENSORFLOW: "TensorBoard, and preparing data sets of TFDS",
    "tensorboard": "TensorBoard",
    "safetensors": "files of that format",
    "huggingface_hub": "weights from and to a hub (hf:OWNER/NAME)",
    "torch": "PyTorch's own files (.pth), in and out",
}
# Of the smoke train: as small as networks are, so that it compiles in seconds.
_SMOKE_CONFIG: dict[str, Any] = {
    "seed": 0,
    "num_epochs": 1,
    "model": {"name": "efficient_resnet", "base_width": 2},
    "data": {"name": "synthetic", "image_size": 8, "val_fraction": 0.0},
    "normalize": {"mean": (0.5,), "std": (0.5,)},
    "schedule": {"name": "constant", "learning_rate": 1e-3},
    "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0},
    "log": {"tensorboard": False},
}
_SMOKE_STEPS = 2
_KERNELS = "CPU kernels (oneDNN's convolutions)"
_NUM_SHOWN = 20  # bad images of a split


class Finding(NamedTuple):
    """One line of a diagnosis.

    Attributes:
        status: "ok", "warning" (works, but not as well) or "FAIL".
        text: What was found, and what to do about it.
    """

    status: str
    text: str


Check = Callable[[], Iterator[Finding]]


def diagnose(
    *,
    workdir: str | None = None,
    data_name: str | None = None,
    data_path: str | None = None,
    all_images: bool = False,
) -> Iterator[Finding]:
    """Yields what was found about the machine, one check after another.

    Args:
        workdir: Folder of a run that is to be written.
        data_name: A data set to look for, as in `load_data`.
        data_path: Where it should be.
        all_images: Decodes every image of it, not one.
    """
    checks: list[Check] = [
        _versions,
        _optional_packages,
        _devices,
        _kernels,
        _huge_pages,
        lambda: _workdir(workdir or "workdir"),
    ]
    if data_name is not None:
        checks.append(lambda: _data(data_name, data_path, all_images))
    for check in [*checks, _smoke_train]:
        yield from _guarded(check)


def _guarded(check: Check) -> Iterator[Finding]:
    """Turns what ends a check into a finding of its own."""
    try:
        yield from check()
    except Exception as error:
        known = isinstance(error, UserError | ImportError)
        fault = str(error) if known else describe_fault(error)
        if fault is None:
            raise
        yield Finding(FAIL, fault)


def _versions() -> Iterator[Finding]:
    versions = {name: metadata.version(name) for name in _REQUIRED}
    versions = {"jaxattn": jaxattn.__version__, **versions}  # need not be installed
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Finding(OK, f"Python {sys.version.split()[0]}, {text}")


def _optional_packages() -> Iterator[Finding]:
    found = []
    for name, use in _USES.items():
        if is_installed(name):
            found.append(name)
        else:
            text = f"{name}: not installed; off without it: {use}; pip install {name}"
            yield Finding(WARNING, text)
    yield Finding(OK, f"optional packages: {', '.join(found) or 'none'}")


def _devices() -> Iterator[Finding]:
    if (fault := find_device_fault()) is not None:
        yield Finding(FAIL, fault)
        return
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    backend = jax.default_backend()
    yield Finding(OK, f"devices: {len(devices)} x {', '.join(kinds)} ({backend})")
    if backend == "cpu" and shutil.which("nvidia-smi"):
        yield Finding(
            WARNING,
            "there is an NVIDIA driver, but JAX uses the CPU:"
            " pip install 'jax[cuda12]'",
        )


def _kernels() -> Iterator[Finding]:
    if not _is_on_cpu():
        return
    if cpu_kernels.is_refused():
        yield Finding(OK, f"{_KERNELS}: not used, as JAXATTN_CPU_KERNELS=0")
        return
    if jax.device_count() > 1:
        text = f"not used on {jax.device_count()} CPU devices; use one"
        yield Finding(WARNING, f"{_KERNELS}: {text}")
        return
    with _muted():
        cpu_kernels.prepare()  # as the first training would
    if cpu_kernels.is_enabled():
        yield Finding(OK, f"{_KERNELS}: built and used")
        return
    advice = cpu_build.find_obstacle()
    if advice is None:  # which is tried, and failed, where it is tried unasked
        advice = "jaxattn build-cpu-kernels tries to, with g++ and oneDNN"
    yield Finding(WARNING, f"{_KERNELS}: not built, training is slower: {advice}")


def _is_on_cpu() -> bool:
    return find_device_fault() is None and jax.default_backend() == "cpu"


def _huge_pages() -> Iterator[Finding]:
    if not _is_on_cpu():
        return
    setting = host.huge_pages_setting()
    asked = "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", "")
    if setting == "always" or (setting == "madvise" and asked):
        yield Finding(OK, f"huge pages: used (the system's setting is {setting})")
        return
    yield Finding(
        WARNING,
        f"huge pages: not used (the system's setting is {setting}, GLIBC_TUNABLES"
        f" {'asks' if asked else 'does not ask'} for them); small networks train up to"
        " 1.4 times as fast with them",
    )


def _workdir(workdir: str) -> Iterator[Finding]:
    path = local_path(workdir, "workdir").resolve()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    with tempfile.NamedTemporaryFile(dir=existing, prefix=".doctor") as file:
        file.write(b"0" * 4096)  # a full disk says so only now
        file.flush()
    free = shutil.disk_usage(existing).free
    text = f"workdir {path}: can be written, {free / 2**30:.1f} GiB free"
    if free < _MIN_FREE_BYTES:
        yield Finding(WARNING, f"{text}; a run of a large network needs 2 GiB")
    else:
        yield Finding(OK, text)


def _data(name: str, path: str | None, all_images: bool) -> Iterator[Finding]:
    data: Data = load_data(name, path=path, val_fraction=0.0)
    yield Finding(OK, f"data {name}: {data.describe()}")
    for note in data.notes:
        yield Finding(WARNING, f"data {name}: {note}")
    if all_images:
        for split, source in data.splits.items():
            yield from _all_images(split, source)
    else:
        H, W, C = data.train[0]["image"].shape  # decodes one
        yield Finding(
            OK,
            f"data {name}: the first image is read, {H} x {W} x {C}; --all-images reads"
            " them all",
        )


def _all_images(split: str, source: Source) -> Iterator[Finding]:
    faults = [fault for block in find_bad_images(source) for fault in block]
    for fault in faults[:_NUM_SHOWN]:
        yield Finding(FAIL, f"{split}: {fault}")
    if faults:
        count = f"{len(faults):,} of {len(source):,} images cannot be read"
        yield Finding(FAIL, f"{split}: {count}; mend or remove them")
    else:
        yield Finding(OK, f"{split}: all {len(source):,} images are read")


def _smoke_train() -> Iterator[Finding]:
    if find_device_fault() is not None:  # which was told
        return
    from jaxattn.training.loop import train_and_evaluate

    count = jax.device_count()
    config = {**_SMOKE_CONFIG, "batch_size": 4 * count}
    sizes = {"num_train": _SMOKE_STEPS * 4 * count, "num_test": 4, "num_classes": 2}
    config["data"] = {**config["data"], **sizes}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, _muted():
        train_and_evaluate(config, folder)
    seconds = time.monotonic() - start
    text = f"trained {_SMOKE_STEPS} steps, saved, restored and reported"
    yield Finding(OK, f"{text} in {seconds:.0f} s, most of it compilation")


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Keeps the lines of the smoke train out of the diagnosis."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


# Checkpoints ----------------------------------------------------------------------


def verify(workdir: str | os.PathLike[str]) -> Iterator[Finding]:
    """Yields what was found about every checkpoint of a workdir.

    A run may be going on in it. Files are compared with their checksums, and what is
    saved with the network of `config.json`.

    Args:
        workdir: Folder of a run.

    Raises:
        UserError: If there is no checkpoint.
    """
    checkpoints = Checkpoints(workdir, read_only=True)
    steps = checkpoints.all_steps()
    if not steps:
        raise UserError(f"workdir {workdir}: holds no run (no checkpoint)")
    target = None
    try:
        target = network_target(workdir)
        if target is None:
            yield Finding(WARNING, "an own network's; files are checked alone")
    except UserError as error:
        yield Finding(FAIL, f"{error}; files are checked alone")
    intact = []
    for step in steps:
        if (fault := checkpoints.find_fault(step, target)) is not None:
            yield Finding(FAIL, f"step {step}: {fault}")
            continue
        intact.append(step)
        metrics = checkpoints.metrics(step)
        known = [
            f", {key} {value:.4f}"
            for key, value in sorted(metrics.items())
            if key.startswith(BEST_PREFIX)
        ]
        yield Finding(OK, f"step {step}: intact{''.join(known)}")
    if strangers := checkpoints.strangers():
        yield Finding(WARNING, f"not checkpoints, ignored: {', '.join(strangers)}")
    if intact:
        yield Finding(OK, f"step {intact[-1]} is the newest intact one")
    else:
        yield Finding(
            FAIL,
            "no checkpoint is intact: put a copy back, or use another workdir",
        )
    checkpoints.close()
