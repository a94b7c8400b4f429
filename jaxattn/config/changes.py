"""How two configs differ, and which differences leave a run what it is."""

import json
from collections.abc import Mapping, Sequence
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
    "accept_changed_data",
)

# What data were read, as far as the record tells.
_DATA = ("dataset.files.", "own.data")
_NUM_SHOWN = 5

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
            the other. So does one of the data, which moves images between training and
            validation, unless the run's key `accept_changed_data` is true.
    """
    # A workdir of an earlier version does not say all that its data were.
    said = saved.get("dataset", {})
    known = {key: value for key, value in record["dataset"].items() if key in said}
    lines = differences(saved, {**record, "dataset": known})
    is_accepted = bool(record.get("accept_changed_data"))
    if (changed := changed_data(saved, record)) and not is_accepted:
        raise UserError(
            f"{where} was begun with other data ({listed(changed)}), of which other"
            " images may be for validation; put the data back, use another workdir, or"
            " go on with them by --config.accept_changed_data=true"
        )
    allowed = (*_RESUMABLE, *_DATA, *may_differ)
    refused = [line for key, line in lines.items() if not key.startswith(allowed)]
    if refused:
        raise UserError(
            f"{where} was begun with another config ({'; '.join(refused)}); use that"
            " one, or another workdir"
        )
    others = [line for key, line in lines.items() if not key.startswith(_DATA)]
    return [*others, *([listed(changed)] if changed else [])]


def changed_data(saved: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """Returns what of the data is not as it was, a line for each part.

    Args:
        saved: Content of a `config.json`; one of an earlier version does not say.
        record: What a run as it is now would write there.
    """
    known = "files" in saved.get("dataset", {})
    keys = _DATA if known else _DATA[1:]
    old, new = (
        {k: v for k, v in flatten(content).items() if k.startswith(keys)}
        for content in (saved, record)
    )
    return [
        f"{key.removeprefix(_DATA[0])}: {_change(old.get(key), new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _change(before: str | None, now: str | None) -> str:
    """How two descriptions differ; the digests only where nothing else does."""
    shown = [str(text).split(", sha256")[0] for text in (before, now)]
    if shown[0] == shown[1]:
        return f"{shown[0]}, but others"
    return " -> ".join(shown)


def listed(lines: Sequence[str]) -> str:
    """Returns the first of several lines as one."""
    more = len(lines) - _NUM_SHOWN
    return "; ".join([*lines[:_NUM_SHOWN], *([f"{more} more"] if more > 0 else [])])


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
