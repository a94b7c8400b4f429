"""Packages that the base installation leaves out, and how to get them.

jaxattn itself is on no index, so the advice names packages, and not its extras.
"""

import importlib.util
import platform
import sys

_IS_LINUX = sys.platform == "linux" and platform.machine() == "x86_64"
TENSORFLOW = "tensorflow-cpu" if _IS_LINUX else "tensorflow"

TRAIN = {
    "orbax-checkpoint": "orbax.checkpoint",
    "ml-collections": "ml_collections",
    "matplotlib": "matplotlib",
    "tqdm": "tqdm",
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "safetensors": "safetensors",
    "grain": "grain",
    "tensorflow-datasets": "tensorflow_datasets",
    "importlib_resources": "importlib_resources",
    "clu": "clu",
    TENSORFLOW: "tensorflow",
    "tensorboard": "tensorboard",
}
"""The packages of the extra `train`, each with the module that it is for."""


def is_installed(package: str) -> bool:
    """Returns whether a package is there: one of `TRAIN`, or named as its module."""
    try:
        return importlib.util.find_spec(TRAIN.get(package, package)) is not None
    except (ModuleNotFoundError, ValueError):  # its parent is missing, or it is a stub
        return False


def how_to_install(error: ImportError) -> str | None:
    """Returns the command that installs what an import has not found.

    It is for all of `TRAIN` that is missing, which would else be met one by one.

    Args:
        error: What the import raised.

    Returns:
        The command; None if the module is of none of these packages.
    """
    wanted = (error.name or "").partition(".")[0]
    if wanted not in {module.partition(".")[0] for module in TRAIN.values()}:
        return None
    missing = [package for package in TRAIN if not is_installed(package)]
    return f"pip install {' '.join(missing)}"
