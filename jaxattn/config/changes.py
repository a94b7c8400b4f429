"""How two configs differ, and which differences leave a run what it is."""

import json
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from jaxattn.errors import UserError

# What may change when a run is resumed: none of it is seen by the weights so far.
_HARMLESS = (
    "log.",
    "pipeline.",
    "data.path",
    "data.on_bad_image",
    "steps_per_dispatch",
    "data_parallel",
    "keep_checkpoints",
    "max_skipped_steps",
    "stall_timeout_s",
)

# How far a run goes may change, too, though not what it is by then.
_RESUMABLE = (*_HARMLESS, "early_stopping.")


# What configs meant before they said it.
_IMPLIED = {"task": "classification"}


def changed_since(
    saved: Mapping[str, Any],
    record: Mapping[str, Any],
    where: str = "the workdir",
    *,
    may_differ: tuple[str, ...] = (),
) -> list[str]:
    """Compares a run with the config that its workdir was begun with.

    Args:
        saved: Content of the workdir's `config.json`.
        record: What the run as it is now would write there.
        where: What the message calls the workdir.
        may_differ: Further keys that may change.

    Returns:
        The changes that do no harm, as "key: before -> now".

    Raises:
        UserError: If another change would make the resumed run neither one thing nor
            the other.
    """
    # A workdir of an earlier version does not say all that its data were.
    said = saved.get("dataset", {})
    known = {key: value for key, value in record["dataset"].items() if key in said}
    lines = differences(saved, {**record, "dataset": known})
    allowed = (*_RESUMABLE, *may_differ)
    refused = [line for key, line in lines.items() if not key.startswith(allowed)]
    if refused:
        raise UserError(
            f"{where} was begun with another config ({'; '.join(refused)}); use that"
            " one, or another workdir"
        )
    return list(lines.values())


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Compares two configs.

    Args:
        before: Content of a `config.json`; its versions are not compared.
        now: Another, or a config that none has been written of yet.

    Returns:
        By the keys that differ, sorted: "key: before -> now".
    """
    old, new = flatten(before), flatten(json.loads(json.dumps(now, default=str)))
    return {
        key: f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith("versions.")
    }


def config_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of a `config.json`, without what its run added."""
    return {key: v for key, v in record.items() if key not in ("dataset", "versions")}


def is_harmless(key: str) -> bool:
    """Returns whether a run's weights are the same whatever a key's value is."""
    return key.startswith(_HARMLESS)


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config's values by their dotted keys, those it implies included."""
    flat = traverse_util.flatten_dict(dict(config))
    return {**_IMPLIED, **{".".join(path): value for path, value in flat.items()}}
