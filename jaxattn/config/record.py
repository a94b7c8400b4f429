"""`config.json` as a version before has written it, read by this version's names."""

import json
import pathlib
from typing import Any

# Up to 0.1, "eca" was CANet's of three kernels; since then it is ECA-Net's.
_ATTENTION_OF_0_1 = {"eca": "multi_kernel_eca"}


def read_record(path: pathlib.Path) -> Any:
    """Returns the content of a `config.json`, whichever version has written it.

    Args:
        path: Of the file.

    Returns:
        What its JSON says; of a run's, values by the names that they have now.
    """
    record = json.loads(path.read_text())
    model = record.get("model") if isinstance(record, dict) else None
    if not isinstance(model, dict) or _version(record) >= (0, 2):
        return record
    name = model.get("attention")
    if not isinstance(name, str) or name not in _ATTENTION_OF_0_1:
        return record
    return {**record, "model": {**model, "attention": _ATTENTION_OF_0_1[name]}}


def _version(record: dict[str, Any]) -> tuple[int, ...]:
    """Returns major and minor version; the first ones did not say, and damage does."""
    try:
        text = record["versions"]["jaxattn"]
        return tuple(int(part) for part in text.split(".")[:2])
    except (KeyError, TypeError, ValueError, AttributeError):
        return (0, 0)
