"""What a run writes as it goes: TensorBoard events through CLU, and `metrics.jsonl`.

A run that was killed has written past its last checkpoint. Neither CLU nor TensorBoard
can take that back, so a resumed run first cuts both records to the restored step.
"""

import contextlib
import errno
import functools
import json
import logging
import math
import os
import pathlib
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from jaxattn import host
from jaxattn.text import printable

_METRICS = "metrics.jsonl"
EVENTS = "tensorboard"
RESULTS = "results"
"""The group of the scalars of a finished run.

TensorBoard sorts groups by name: those of scalars come first, then pictures (`view`)
and histograms (`weights`).
"""

_logger = logging.getLogger(__name__)


class RunWriter:
    """Writes scalars, histograms, images and texts of one run.

    Scalars go to `metrics.jsonl` and to TensorBoard, the rest to TensorBoard alone.
    Every line of `metrics.jsonl` is with the operating system when its call returns.
    Only one process of a run may have one. Usable as a context manager.

    Args:
        workdir: Directory of the run; made if absent.
        start_step: The step from which the run starts or resumes. Whatever an earlier
            attempt left after it is dropped; at 0, everything is.
        tensorboard: False writes `metrics.jsonl` only. So does a machine without
            TensorFlow, after one line that says so.

    Raises:
        OSError: From here and from every method, if a file cannot be written (a full
            disk); names the file or directory.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        start_step: int,
        tensorboard: bool = True,
    ) -> None:
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        # At step 0 nothing was trained: records of step 0 are an earlier attempt's too.
        truncate_run(workdir, start_step if start_step > 0 else -1)
        self._resumed = start_step > 0
        self._path = workdir / _METRICS
        self._events = workdir / EVENTS
        self._has_tensorboard = tensorboard
        with _naming(self._path):
            self._file = open(self._path, "ab")  # noqa: SIM115 - closed by close()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes scalars to both records.

        In `metrics.jsonl` they are one line `{"step": step, ...}`; JSON knows no NaN
        and no infinity, so both are written as null there.
        """
        line = {"step": int(step)} | {k: _to_json(v) for k, v in scalars.items()}
        with _naming(self._path):
            self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self._file.flush()
        values = {key: float(value) for key, value in scalars.items()}
        self._summarize(lambda writer: writer.write_scalars(step, values))

    def write_histograms(self, step: int, arrays: Mapping[str, Any]) -> None:
        """Writes the distribution of each array's finite values, if it has any."""
        if self._summary is None:
            return
        flat = {k: np.asarray(v, np.float32).ravel() for k, v in arrays.items()}
        finite = {k: v[np.isfinite(v)] for k, v in flat.items()}
        kept = {k: v for k, v in finite.items() if v.size}
        self._summarize(lambda writer: writer.write_histograms(step, kept))

    @functools.cached_property
    def _summary(self) -> Any:
        """CLU's writer, or None: made when it is needed, for it imports TensorFlow."""
        return _summary_writer(self._events) if self._has_tensorboard else None

    @property
    def shows_images(self) -> bool:
        """Whether `write_images` has somewhere to write."""
        return self._summary is not None

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes images, uint8 [H, W, 1 or 3] each."""
        self._summarize(lambda writer: writer.write_images(step, images))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts; TensorBoard reads them as Markdown."""
        self._summarize(lambda writer: writer.write_texts(step, texts))

    def write_hparams(
        self,
        hparams: Mapping[str, Any],
        *,
        main: Collection[str] = (),
        metrics: Mapping[str, str] | None = None,
    ) -> None:
        """Writes the run's hyperparameters, and what TensorBoard's table shows of it.

        A resumed run writes none: those of its first start are still there, and
        TensorBoard has room for one set a run.

        Args:
            hparams: A flat mapping of names to values; those that are None are left
                out.
            main: Names that are shown before the others.
            metrics: From tags of scalars to the names of their columns.
        """
        if self._resumed or self._summary is None:
            return
        kinds = (bool, int, float, str)
        flat = {
            key: value if isinstance(value, kinds) else str(value)
            for key, value in hparams.items()
            if value is not None
        }
        # A path of bytes that are not UTF-8 cannot be written as it is.
        flat = {k: printable(v) if isinstance(v, str) else v for k, v in flat.items()}
        written = _describe_experiment(flat, main, metrics or {})
        written |= _describe_session(flat, _run_name(self._path.parent))
        values = {tag: np.zeros(0, np.float32) for tag in written}
        self._summarize(lambda writer: writer.write_summaries(0, values, written))

    def write_results(self, step: int, results: Mapping[str, Any]) -> None:
        """Writes the numbers of a finished run, as `results/...`, to TensorBoard alone.

        Args:
            step: The last one.
            results: By name; what is no finite number is left out.
        """
        kept = {
            f"{RESULTS}/{key}": value
            for key, value in results.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        self._summarize(lambda writer: writer.write_scalars(step, kept))

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        with _naming(self._path):
            self._file.flush()
        self._summarize(lambda writer: writer.flush())

    def close(self) -> None:
        """Closes both records; more than once is harmless."""
        summary = self.__dict__.get("_summary")  # None, if nothing was written
        self._summary = None
        with contextlib.ExitStack() as stack:  # the second, even if the first fails
            if summary is not None:
                stack.enter_context(_naming(self._events))
                stack.callback(summary.close)
            with _naming(self._path):
                self._file.close()

    def __enter__(self) -> "RunWriter":
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes both records."""
        self.close()

    def _summarize(self, write: Callable[[Any], None]) -> None:
        if self._summary is not None:
            with _naming(self._events):
                write(self._summary)


def _run_name(workdir: pathlib.Path) -> str:
    """Names a run by its folder; and the one around it, for many are called `seed0`."""
    return "/".join(workdir.resolve().parts[-2:])


def _describe_session(hparams: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns what the plugin reads of a run, by its tag."""
    from tensorboard.plugins.hparams import api

    summary = api.hparams_pb(dict(hparams), trial_id=name)
    return {value.tag: value.metadata for value in summary.value}


def _describe_experiment(
    hparams: Mapping[str, Any], main: Collection[str], metrics: Mapping[str, str]
) -> dict[str, Any]:
    """Returns what the plugin reads of the columns of its table, by its tag."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    # Their classes are generated at import, unseen by a type checker.
    protos: Any = api_pb2
    plugin: Any = plugin_data_pb2

    kinds = {bool: protos.DATA_TYPE_BOOL, str: protos.DATA_TYPE_STRING}
    columns = [
        protos.HParamInfo(
            name=key,
            type=kinds.get(type(value), protos.DATA_TYPE_FLOAT64),
            # Those that differ come first, and before a second run none does.
            differs=key in main,
        )
        for key, value in hparams.items()
    ]
    shown = [
        protos.MetricInfo(name=protos.MetricName(tag=tag), display_name=name)
        for tag, name in metrics.items()
    ]
    experiment = protos.Experiment(hparam_infos=columns, metric_infos=shown)
    data = plugin.HParamsPluginData(experiment=experiment)
    return {metadata.EXPERIMENT_TAG: metadata.create_summary_metadata(data)}


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl` of a run.

    Args:
        workdir: Directory of the run.

    Returns:
        One dict per line, with `step` and the scalars; a NaN or infinity is None. A
        line that is damaged, or cut short by a kill, is left out. Empty if there is no
        file.
    """
    path = pathlib.Path(workdir) / _METRICS
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = (_parse(line) for line in lines)
    return [record for record in records if record is not None]


def history(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Returns one row for each epoch of a run, from the rows of its metrics."""
    # The last one counts: an epoch is written again if a kill came before its save.
    rows = {row["step"]: row for row in metrics if "epoch/epoch" in row}
    return [
        {key.removeprefix("epoch/"): value for key, value in row.items()}
        for row in rows.values()
    ]


def truncate_run(workdir: str | os.PathLike[str], step: int) -> None:
    """Removes what a run has recorded after a step, and torn tails.

    Each file is replaced at once or left as it is.

    Args:
        workdir: Directory of the run; it need hold no record yet.
        step: The last step that is kept.

    Raises:
        OSError: If a file cannot be rewritten; names it.
    """
    path = pathlib.Path(workdir) / _METRICS
    if path.exists():
        kept = [r for r in read_metrics(workdir) if r["step"] <= step]
        data = "".join(json.dumps(record) + "\n" for record in kept).encode()
        if data != path.read_bytes():
            _replace(path, data)
    # Sorted, since a listing has no order and errors should be the same every time.
    for events in sorted((pathlib.Path(workdir) / EVENTS).glob("*.tfevents.*")):
        _truncate_events(events, step)


def _truncate_events(path: pathlib.Path, step: int) -> None:
    """Keeps the frames of `path` up to `step`; a file without any is deleted."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import (
        Event,  # pyright: ignore[reportAttributeAccessIssue] - generated at import
    )

    kept, records = [], 0
    with open(path, "rb") as file:
        for frame, data in _frames(file):
            try:
                event = Event.FromString(data)
            except DecodeError:  # a tail of blocks that were never written
                break
            header = bool(event.file_version)
            if header or event.step <= step:
                kept.append(frame)
                records += not header
    if not records:
        path.unlink()
    elif sum(map(len, kept)) != path.stat().st_size:
        _replace(path, b"".join(kept))


def _frames(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yields each whole TFRecord frame and its payload.

    A frame is a length (u64), its CRC (u32), the payload, and its CRC (u32). Frames
    are copied as they are, so the CRCs stay right.
    """
    size = os.fstat(file.fileno()).st_size  # bounds a length that is garbage
    while len(head := file.read(12)) == 12:
        (length,) = struct.unpack("<Q", head[:8])
        body = file.read(length + 4) if 0 < length < size else b""
        if len(body) != length + 4:
            return
        yield head + body, body[:-4]


def _replace(path: pathlib.Path, data: bytes) -> None:
    # TensorBoard opens whatever has "tfevents" in its name: this has not.
    partial = path.with_name("truncated.tmp")
    with _naming(path):
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    is_whole = all(type(v) in (int, float, type(None)) for v in record.values())
    return record if is_whole else None


def _to_json(value: float) -> float | int | None:
    if isinstance(value, int | np.integer):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else None


def _summary_writer(directory: pathlib.Path) -> Any:
    """CLU's writer into `directory`, or None without TensorFlow."""
    # TensorFlow reads both when it is loaded; the second, off, spares a notice that
    # the first does not silence. Nothing here computes with TensorFlow.
    host.quiet_tensorflow()
    try:
        import tensorflow as tf

        # Before anything else of TensorFlow, or it takes the GPU's memory from JAX.
        tf.config.set_visible_devices([], "GPU")
        from clu import metric_writers
    except ImportError as error:
        _logger.warning("TensorBoard is off: %s", error)
        return None
    with _naming(directory):
        # Not create_default_writer: its LoggingWriter fails on constant histograms.
        return metric_writers.SummaryWriter(str(directory))


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """Makes an error of writing an OSError that names `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        # TensorFlow's errors of the file system (full, gone, forbidden) share no
        # built-in base with OSError; recognised by name, it may not be installed.
        if "OpError" not in [base.__name__ for base in type(error).__mro__]:
            raise
        reason = f"could not be written ({error})"
        raise OSError(errno.EIO, reason, str(path)) from error
