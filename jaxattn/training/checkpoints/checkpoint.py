"""Checkpoints that survive crashes, full disks and damaged files.

Each is a folder `<workdir>/checkpoints/<step>` with
`default/` (the train state, written by Orbax), `metrics.json` and
`manifest.json` (the SHA-256 of every other file). `orbax.CheckpointManager` can read
such a folder, but this module uses only Orbax's `Checkpointer` and does the
housekeeping itself, since the manager commits before a manifest can be added, deletes
old steps in place (a kill leaves half of one that looks whole), cannot replace a step
without a moment in which it is gone, and restores a flipped byte without a word.

All writing and deleting happens in `<workdir>/checkpoints/.tmp`: a step appears and
vanishes by one rename, and whatever a kill leaves in `.tmp` is cleared by the next
run. A step folder without a manifest is therefore not ours, or damaged.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from jaxattn.errors import MachineError, UserError, reraise_machine_fault
from jaxattn.host import quiet_absl
from jaxattn.paths import local_path
from jaxattn.text import printable

PyTree = Any
Path = tuple[str, ...]

BEST_PREFIX = "val_"  # of the metrics by which a checkpoint may be the best
NUM_LATEST = 2  # the second is there for the day on which the first is damaged
METRICS, MANIFEST = "metrics.json", "manifest.json"
MAX_DIFFERENCES = 3  # named in an error; more would hide the message

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves and restores the train state under `<workdir>/checkpoints`.

    Kept are the newest steps and, for each metric `val_...`, the best one (the
    earliest of equals). With several processes every method is called by all of them,
    on one shared file system.

    Args:
        workdir: The run's folder, created if it is missing.
        num_latest: How many of the newest steps are kept.
        read_only: Neither creates nor clears anything, for programs that read a workdir
            in which a run may be going on; `save` is then not allowed.

    Raises:
        UserError: The folder cannot be written, or has a name that Orbax takes for a
            pattern.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        num_latest: int = NUM_LATEST,
        read_only: bool = False,
    ) -> None:
        if printable(path := str(pathlib.Path(workdir).resolve())) != path:
            raise UserError(
                f"workdir {path}: its path must be UTF-8 without line breaks and other"
                " control characters"
            )
        # Imported here: jaxattn works without Orbax until something is saved.
        import orbax.checkpoint as ocp

        self.directory = local_path(workdir, "workdir").resolve() / "checkpoints"
        self._tmp = self.directory / ".tmp"
        self._num_latest = num_latest
        self._read_only = read_only
        self._damaged: set[int] = set()  # found by reading; never kept as a fallback
        self._args = ocp.args
        self._make_restore_args = ocp.checkpoint_utils.construct_restore_args
        self._checkpointer = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(default=ocp.PyTreeCheckpointHandler())
        )
        if not read_only:
            # Orbax finds no parts to join there and saves an empty index.
            if odd := sorted(set("*?[") & set(str(self.directory))):
                raise UserError(
                    f"workdir {self.directory.parent}: its path must be without"
                    f" {' and '.join(odd)}"
                )
            if _is_writer():
                self._recover()
            _wait_for_all("checkpoints recovered")
        self._warn_of_strangers()

    def save(
        self, step: int, state: PyTree, metrics: Mapping[str, float | None] | None
    ) -> None:
        """Writes the state as `step`, in place of an earlier save of that step.

        Returns once the checkpoint is on disk. A kill at any moment leaves the earlier
        checkpoints whole, the replaced one included.

        Args:
            step: Number of the last finished step.
            state: The train state, a tree of arrays.
            metrics: Values by name, higher is better. None counts as unknown, unless an
                earlier save of this step knew the value; so does a non-finite value. A
                checkpoint is never the best by a metric that it does not know.

        Raises:
            MachineError: The disk is full or the folder cannot be written.
        """
        assert not self._read_only
        new = self._tmp / str(step)
        try:
            with _quiet_orbax():
                item = self._args.PyTreeSave(_to_dict(state))
                self._checkpointer.save(new, args=self._args.Composite(default=item))
            if _is_writer():
                _write_json(new / METRICS, self._merge_metrics(step, metrics))
                _write_manifest(new)
                self._commit(new, step)
                self._prune(step)
        except Exception as error:
            if _is_writer():
                with contextlib.suppress(UserError):
                    self._recover()
            reason = _os_reason(error)
            if reason is None:
                raise
            raise MachineError(
                f"checkpoint {self._path(step)} could not be written: {reason}; "
                "the earlier checkpoints are intact"
            ) from error
        _wait_for_all("checkpoint saved")

    def restore_latest(
        self, target: PyTree, *, partial: bool = False
    ) -> tuple[PyTree, int] | None:
        """Restores the newest intact checkpoint.

        Args:
            target: The wanted tree: `jax.ShapeDtypeStruct` leaves with shardings, or
                arrays. A leaf without a sharding goes to the first local device.
            partial: The checkpoint may hold more than the target, which is not read:
                for programs that want the weights alone.

        Returns:
            The state and its step, or None if there is no checkpoint at all.

        Raises:
            UserError: Every checkpoint is damaged, or the newest intact one does not
                fit the target.
        """
        return self._restore_first_intact(self.all_steps()[::-1], target, partial)

    def restore_best(
        self, target: PyTree, metric: str, *, partial: bool = False
    ) -> tuple[PyTree, int] | None:
        """Restores the intact checkpoint with the highest value of `metric`.

        Args:
            target: As in `restore_latest`.
            metric: A name that was given to `save`.
            partial: As in `restore_latest`.

        Returns:
            The state and its step, or None if no checkpoint knows the metric.

        Raises:
            UserError: Every checkpoint that knows the metric is damaged, or the best
                one does not fit the target.
        """
        ranked = self._rank(metric, self.all_steps())
        return self._restore_first_intact(ranked, target, partial)

    def restore(self, step: int, target: PyTree) -> PyTree:
        """Restores one checkpoint.

        Args:
            step: One of `all_steps`.
            target: As in `restore_latest`.

        Raises:
            UserError: It is damaged, or does not fit the target.
        """
        if (damage := find_damage(self._path(step))) is not None:
            raise UserError(f"checkpoint {self._path(step)} is damaged: {damage}")
        return self._restore(step, target, partial=False)

    def best_step(self, metric: str) -> int | None:
        """Returns the earliest step with the highest `metric`, unverified, or None."""
        return next(iter(self._rank(metric, self.all_steps())), None)

    def metrics(self, step: int) -> dict[str, float]:
        """Returns the metrics saved with `step`; empty if they cannot be read."""
        try:
            return _read_json(self._path(step) / METRICS)
        except (OSError, ValueError):
            return {}

    def saved_shapes(self, names: Iterable[str]) -> PyTree | None:
        """Returns shapes of parts of the state, of the newest intact checkpoint.

        Args:
            names: Of the parts, such as "params".

        Returns:
            A target for `restore_latest`; None without an intact checkpoint.
        """
        parts = list(names)
        for step in self.all_steps()[::-1]:
            if find_damage(self._path(step)) is None:
                saved = self._saved(step)
                kept = {k: _to_abstract(v) for k, v in saved.items() if k[0] in parts}
                return {k: {} for k in parts} | traverse_util.unflatten_dict(kept)
        return None

    def find_fault(self, step: int, target: PyTree | None) -> str | None:
        """Returns what is wrong with a checkpoint in one line, or None.

        Args:
            step: One of `all_steps`.
            target: What it must hold, as in `restore_latest`; None checks files alone.
        """
        if (damage := find_damage(self._path(step))) is not None:
            return damage
        if target is None:
            return None
        leaves, _ = jax.tree.flatten_with_path(target)
        wanted = {_to_names(path): _to_abstract(leaf) for path, leaf in leaves}
        try:
            self._check_fit(step, wanted, partial=True)
        except UserError as error:
            return str(error)
        return None

    def strangers(self) -> list[str]:
        """Returns the names of what is beside the checkpoints and none of them."""
        own = (self._tmp, *(path for path in self._entries() if _is_step(path)))
        return [path.name for path in self._entries() if path not in own]

    def all_steps(self) -> list[int]:
        """Returns the steps on disk in ascending order, damaged ones included."""
        return sorted(int(path.name) for path in self._entries() if _is_step(path))

    def close(self) -> None:
        """Releases Orbax's threads."""
        self._checkpointer.close()

    def _path(self, step: int) -> pathlib.Path:
        return self.directory / str(step)

    def _entries(self) -> list[pathlib.Path]:
        return sorted(self.directory.iterdir()) if self.directory.is_dir() else []

    def _recover(self) -> None:
        """Undoes or clears whatever a kill or an error has left behind."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            # A kill between the two renames of a replacement: the old one goes back.
            for old in self._tmp.glob("*.replaced"):
                if not self._path(int(old.stem)).exists():
                    old.rename(self._path(int(old.stem)))
            if self._tmp.exists():
                shutil.rmtree(self._tmp)
            self._tmp.mkdir()
        except OSError as error:
            reraise_machine_fault(error)
            raise UserError(
                f"checkpoints cannot be written to {self.directory}: {error.strerror}"
            ) from error

    def _warn_of_strangers(self) -> None:
        if strangers := self.strangers():
            logger.warning(
                "ignored in %s, not checkpoints: %s",
                self.directory,
                ", ".join(strangers),
            )

    def _commit(self, new: pathlib.Path, step: int) -> None:
        final = self._path(step)
        replaced = self._tmp / f"{step}.replaced"
        if final.exists():
            final.rename(replaced)
        new.rename(final)
        _sync(self.directory)
        self._damaged.discard(step)
        shutil.rmtree(replaced, ignore_errors=True)

    def _merge_metrics(
        self, step: int, metrics: Mapping[str, float | None] | None
    ) -> dict[str, float]:
        # A run that resumes at this step and is stopped at once knows less than the
        # one that evaluated it.
        earlier = {} if step in self._damaged else self.metrics(step)
        given = {k: float(v) for k, v in (metrics or {}).items() if v is not None}
        # NaN is neither better nor worse than any number: it could stay the best.
        return {k: v for k, v in (earlier | given).items() if math.isfinite(v)}

    def _prune(self, saved: int) -> None:
        steps = self.all_steps()
        intact = [step for step in steps if step not in self._damaged]
        kept = {saved, *intact[-self._num_latest :]}
        known = {key for step in intact for key in self.metrics(step)}
        for metric in known:
            if metric.startswith(BEST_PREFIX):
                kept.update(self._rank(metric, intact)[:1])
        for step in set(steps) - kept:
            deleted = self._tmp / f"{step}.deleted"
            self._path(step).rename(deleted)
            # What cannot be removed now is removed by the next run.
            shutil.rmtree(deleted, ignore_errors=True)

    def _rank(self, metric: str, steps: Iterable[int]) -> list[int]:
        """Lists those steps that know the metric: best first, the earlier of equals."""
        values = {step: self.metrics(step).get(metric) for step in steps}
        known = {step: value for step, value in values.items() if value is not None}
        return sorted(known, key=lambda step: (-known[step], step))

    def _restore_first_intact(
        self, steps: Iterable[int], target: PyTree, partial: bool
    ) -> tuple[PyTree, int] | None:
        damages = []
        for step in steps:
            damage = find_damage(self._path(step))
            if damage is None:
                if damages:
                    logger.warning(
                        "%s; step %d is used instead", "; ".join(damages), step
                    )
                return self._restore(step, target, partial), step
            self._damaged.add(step)
            damages.append(f"checkpoint {self._path(step)} is damaged: {damage}")
        if damages:
            raise UserError(
                f"{'; '.join(damages)}; no intact one is left: "
                "put a copy back, or start anew in another workdir"
            )
        return None

    def _restore(self, step: int, target: PyTree, partial: bool) -> PyTree:
        leaves, treedef = jax.tree.flatten_with_path(target)
        wanted = {_to_names(path): _to_abstract(leaf) for path, leaf in leaves}
        self._check_fit(step, wanted, partial)
        tree = traverse_util.unflatten_dict(wanted)
        # "Partial" for what the target leaves out; that nothing else is missing has
        # just been checked.
        item = self._args.PyTreeRestore(
            tree, restore_args=self._make_restore_args(tree), partial_restore=True
        )
        with _quiet_orbax():
            restored = self._checkpointer.restore(
                self._path(step), args=self._args.Composite(default=item)
            )["default"]
        flat = traverse_util.flatten_dict(restored)
        return jax.tree.unflatten(treedef, [flat[path] for path in wanted])

    def _saved(self, step: int) -> dict[Path, Any]:
        """Returns shape and dtype of each array in a checkpoint that is intact."""
        metadata = self._checkpointer.metadata(self._path(step)).item_metadata
        assert metadata is not None  # its file is in the verified manifest
        return traverse_util.flatten_dict(metadata["default"].tree)

    def _check_fit(
        self, step: int, wanted: Mapping[Path, jax.ShapeDtypeStruct], partial: bool
    ) -> None:
        saved = self._saved(step)
        unwanted = [] if partial else [path for path in saved if path not in wanted]
        differences = [
            f"{'/'.join(path)} ({_describe(saved.get(path))} saved, "
            f"{_describe(wanted.get(path))} wanted)"
            for path in [*wanted, *unwanted]
            if _describe(saved.get(path)) != _describe(wanted.get(path))
        ]
        if differences:
            more = len(differences) - MAX_DIFFERENCES
            raise UserError(
                f"checkpoint {self._path(step)} is of another model or optimizer: "
                + ", ".join(differences[:MAX_DIFFERENCES])
                + (f" and {more} more" if more > 0 else "")
                + "; restore it with its own config, or use another workdir"
            )


def _is_writer() -> bool:
    return jax.process_index() == 0


def _wait_for_all(name: str) -> None:
    multihost_utils.sync_global_devices(name)


def _is_step(path: pathlib.Path) -> bool:
    return path.is_dir() and re.fullmatch(r"0|[1-9][0-9]*", path.name) is not None


def _to_names(path: Iterable[Any]) -> Path:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _to_dict(tree: PyTree) -> dict[str, Any]:
    """Turns the tree into nested dicts, which any version of its classes can read."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return traverse_util.unflatten_dict(
        {_to_names(path): leaf for path, leaf in leaves}
    )


def _to_abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.Sharding):  # Orbax has a kind of its own
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _describe(leaf: Any) -> str:
    if leaf is None:
        return "nothing"
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder: pathlib.Path) -> None:
    """Writes the digest of every file and brings them all onto the disk."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in files}
    _write_json(folder / MANIFEST, digests)
    # Before the rename that commits: a power cut must not leave a name without content.
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def find_damage(folder: pathlib.Path) -> str | None:
    """Returns the first missing or changed file and what is wrong with it, or None."""
    try:
        digests = dict(_read_json(folder / MANIFEST))
        if not digests:
            raise ValueError
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, TypeError):
        return f"{MANIFEST} is unreadable"
    for name, digest in digests.items():
        try:
            if _digest(folder / name) != digest:
                return f"{name} has changed since it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError) as error:
            return f"{name} is unreadable ({error})"
    return None


def _read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text())


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _sync(path: pathlib.Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems, and Windows, sync none
            raise


def _os_reason(error: Exception) -> str | None:
    """Returns the operating system's words for a failed write, None for a bug."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # TensorStore, which writes for Orbax, passes them on in a ValueError.
    match = re.search(r"([^:]+) \[os_error_code", str(error))
    return match[1].strip() if match else None


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Mutes Orbax, which repeats in hundreds of lines the error that it then raises."""
    hook = sys.unraisablehook

    def drop_late(unraisable: Any) -> None:
        # A save fails with its first array. The others tell an event loop that is
        # closed by then, each with a traceback.
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = drop_late
    with quiet_absl():
        yield
    sys.unraisablehook = hook  # not after an error: the late ones are still to come
