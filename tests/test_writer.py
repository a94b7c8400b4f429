import collections
import json
import logging
import math
import resource
import signal
import struct
import sys

import numpy as np
import pytest

from jaxattn.training.records.writer import RunWriter, read_metrics, truncate_run

# TensorFlow alone takes 0.4 GB.
pytestmark = pytest.mark.full


def event_files(workdir):
    return sorted((workdir / "tensorboard").glob("*.tfevents.*"))


def tensorboard(workdir):
    """What TensorBoard finds: {tag: [(step, value as numpy)]}."""
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    guidance = {event_accumulator.TENSORS: 0}  # keep all
    directory = str(workdir / "tensorboard")
    accumulator = event_accumulator.EventAccumulator(directory, guidance)
    accumulator.Reload()
    return {
        tag: [
            (event.step, tensor_util.make_ndarray(event.tensor_proto))
            for event in accumulator.Tensors(tag)
        ]
        for tag in accumulator.Tags()["tensors"]
    }


def steps(workdir, tag="loss"):
    return [step for step, _ in tensorboard(workdir).get(tag, [])]


def write_steps(workdir, steps, *, start_step=0):
    with RunWriter(workdir, start_step=start_step) as writer:
        for step in steps:
            writer.write_scalars(step, {"loss": 1 / (step + 1)})


def test_scalars_reach_both_records(tmp_path):
    with RunWriter(tmp_path, start_step=0) as writer:
        writer.write_scalars(3, {"loss": np.float32(0.5), "epoch": 2})
    assert read_metrics(tmp_path) == [{"step": 3, "loss": 0.5, "epoch": 2}]
    assert tensorboard(tmp_path) == {"loss": [(3, 0.5)], "epoch": [(3, 2.0)]}


def test_resume_leaves_no_step_twice(tmp_path):
    write_steps(tmp_path, [1, 2, 3, 4, 5])
    write_steps(tmp_path, [4, 5, 6], start_step=3)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_second_resume_truncates_every_event_file(tmp_path):
    write_steps(tmp_path, [1, 2, 3, 4])
    write_steps(tmp_path, [4, 5], start_step=3)
    write_steps(tmp_path, [3], start_step=2)
    assert steps(tmp_path) == [1, 2, 3]


def test_start_from_nothing_drops_an_earlier_attempt(tmp_path):
    write_steps(tmp_path, [0, 1])
    write_steps(tmp_path, [0])
    assert [row["step"] for row in read_metrics(tmp_path)] == [0]
    assert steps(tmp_path) == [0]


def test_torn_line_of_metrics_is_dropped(tmp_path):
    write_steps(tmp_path, [1, 2])
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    write_steps(tmp_path, [3], start_step=2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize(
    "tail",
    [
        b"\x20\0\0",  # half a length
        struct.pack("<QI", 32, 0) + b"\x09half a payload",
        struct.pack("<QI", 2**60, 0) + b"garbage",
        bytes(64),  # blocks that were allocated, never written
        struct.pack("<QI", 8, 0) + b"\xff" * 12,  # whole, but no event
    ],
)
def test_torn_tail_of_events_is_dropped(tmp_path, tail):
    write_steps(tmp_path, [1, 2])
    (path,) = event_files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    truncate_run(tmp_path, 2)
    assert path.read_bytes() == whole


def test_nothing_to_truncate_leaves_files_untouched(tmp_path):
    write_steps(tmp_path, [1, 2])
    paths = [tmp_path / "metrics.jsonl", *event_files(tmp_path)]
    before = [(path.stat().st_ino, path.read_bytes()) for path in paths]
    truncate_run(tmp_path, 2)
    assert [(path.stat().st_ino, path.read_bytes()) for path in paths] == before


def test_event_file_left_without_records_is_deleted(tmp_path):
    write_steps(tmp_path, [5, 6])
    truncate_run(tmp_path, 4)
    assert event_files(tmp_path) == []


def test_truncation_leaves_no_temporary_file(tmp_path):
    write_steps(tmp_path, [1, 2])
    truncate_run(tmp_path, 1)
    assert not list(tmp_path.rglob("*.tmp"))


def test_metrics_survive_a_kill(tmp_path):
    writer = RunWriter(tmp_path, start_step=0, tensorboard=False)
    writer.write_scalars(1, {"loss": 0.5})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]  # not yet closed
    writer.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_metrics_stay_valid_json_whatever_the_loss(tmp_path, value):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    with RunWriter(tmp_path, start_step=0) as writer:
        writer.write_scalars(1, {"loss": value})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {"step": 1, "loss": None}
    ((_, shown),) = tensorboard(tmp_path)["loss"]
    np.testing.assert_equal(float(shown), value)


def test_histograms_hold_the_finite_values_only(tmp_path):
    arrays = {
        "constant": np.full(7, 0.1, np.float32),
        "partly": np.array([1.0, np.nan, np.inf, 2.0]),
        "never": np.full((2, 2), np.nan),
        "empty": np.zeros((0, 3)),
    }
    with RunWriter(tmp_path, start_step=0) as writer:
        writer.write_histograms(1, arrays)
    # TensorBoard's histograms are [buckets, (left, right, count)].
    counts = {
        tag: float(values[0][1][:, 2].sum())
        for tag, values in tensorboard(tmp_path).items()
    }
    assert counts == {"constant": 7, "partly": 2}


def test_images_and_texts_reach_tensorboard(tmp_path):
    image = np.zeros((4, 6, 3), np.uint8)
    with RunWriter(tmp_path, start_step=0) as writer:
        writer.write_images(2, {"errors": image})
        writer.write_texts(2, {"model": "a table"})
    shown = tensorboard(tmp_path)
    width, height, *_ = shown["errors"][0][1]
    assert (width, height) == (b"6", b"4")
    assert shown["model"][0][1] == b"a table"


def test_hparams_of_any_type_are_written_once_a_run(tmp_path):
    hparams = {"lr": 0.1, "nesterov": True, "name": "canet", "warmup": None}
    for start_step in (0, 5):
        with RunWriter(tmp_path, start_step=start_step) as writer:
            writer.write_hparams(hparams)
            writer.write_scalars(start_step + 1, {"loss": 1.0})
    counts = collections.Counter(
        {tag: len(values) for tag, values in tensorboard(tmp_path).items()}
    )
    assert counts == {
        "_hparams_/experiment": 1,
        "_hparams_/session_start_info": 1,
        "loss": 2,
    }


def table(logdir):
    """What TensorBoard's tab of hyperparameters holds."""
    from tensorboard import context as contexts
    from tensorboard.backend.event_processing import (
        data_provider,
        plugin_event_multiplexer,
    )
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import (
        api_pb2,
        backend_context,
        list_session_groups,
    )

    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
    context = base_plugin.TBContext(data_provider=provider, logdir=str(logdir))
    backend = backend_context.Context(context)
    asked = contexts.RequestContext()
    experiment = backend.experiment_from_metadata(
        asked, "", True, backend.hparams_metadata(asked, ""), []
    )
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=10, allowed_statuses=[0, 1, 2, 3]
    )
    for info in experiment.metric_infos:
        request.col_params.add().metric.CopyFrom(info.name)
    listed = list_session_groups.Handler(asked, backend, "", request).run()
    return experiment, listed.session_groups


def test_the_table_of_runs_has_their_names_and_metrics(tmp_path):
    metrics = {"results/test_accuracy": "test_accuracy"}
    for i, model in enumerate(("canet", "vgg")):
        with RunWriter(tmp_path / "study" / model, start_step=0) as writer:
            hparams = {"a": 1.5, "b": None, "model": model, "learning_rate": 0.1}
            writer.write_hparams(
                hparams, main=("model", "learning_rate"), metrics=metrics
            )
            results = {"test_accuracy": 0.25 + i / 4, "test_accuracy_ema": None}
            writer.write_results(7, results)
    experiment, groups = table(tmp_path)
    columns = [info.name for info in experiment.hparam_infos]
    assert columns == ["learning_rate", "model", "a"]
    assert [info.display_name for info in experiment.metric_infos] == ["test_accuracy"]
    assert sorted(group.name for group in groups) == ["study/canet", "study/vgg"]
    for group in groups:
        model = group.name.removeprefix("study/")
        assert group.hparams["model"].string_value == model
        assert group.hparams["learning_rate"].number_value == 0.1
        (value,) = group.metric_values
        assert value.value == {"canet": 0.25, "vgg": 0.5}[model]


def test_results_are_not_rows_of_metrics(tmp_path):
    with RunWriter(tmp_path, start_step=0) as writer:
        writer.write_results(7, {"test_accuracy": 0.5, "loss": float("nan")})
    assert read_metrics(tmp_path) == []
    assert list(tensorboard(tmp_path)) == ["results/test_accuracy"]


def test_without_tensorflow_metrics_are_written_and_one_line_says_so(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with caplog.at_level(logging.WARNING), RunWriter(tmp_path, start_step=0) as writer:
        writer.write_scalars(1, {"loss": 0.5})
        writer.write_histograms(1, {"w": np.ones(3)})
        writer.write_images(1, {"i": np.zeros((2, 2, 3), np.uint8)})
        writer.write_texts(1, {"t": "text"})
        writer.write_hparams({"lr": 0.1})
        writer.flush()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert [m.partition(":")[0] for m in caplog.messages] == ["TensorBoard is off"]


def test_tensorboard_is_optional(tmp_path):
    with RunWriter(tmp_path, start_step=0, tensorboard=False) as writer:
        writer.write_scalars(1, {"loss": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_workdir_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("a b [1]*?", "实验-é", "link/"):
        write_steps(name, [1, 2, 3])
        write_steps(name, [3], start_step=2)
        assert len(read_metrics(name)) == 3
        assert steps(tmp_path / name) == [1, 2, 3]


def repeat(write, values):
    for step in range(100):
        write(step, values)


@pytest.fixture
def full_disk():
    """Makes every file refuse to grow past its first 600 bytes."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, ignored)


def test_full_disk_is_an_error_that_names_the_metrics_file(tmp_path, full_disk):
    writer = RunWriter(tmp_path, start_step=0, tensorboard=False)
    full_disk()
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        repeat(writer.write_scalars, {"loss": 0.5})
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        writer.close()  # what could not be written is still there


def test_full_disk_is_an_error_that_names_the_events(tmp_path, full_disk):
    writer = RunWriter(tmp_path, start_step=0)
    full_disk()
    with pytest.raises(OSError, match="tensorboard"):
        repeat(writer.write_texts, {"text": "x" * 100})
    writer.close()


def test_full_disk_at_truncation_keeps_the_old_record(tmp_path, full_disk):
    with RunWriter(tmp_path, start_step=0, tensorboard=False) as writer:
        for step in range(100):
            writer.write_scalars(step, {"loss": 0.5})
    full_disk()
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        truncate_run(tmp_path, 90)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert len(read_metrics(tmp_path)) == 100


def test_metrics_of_no_run_are_empty(tmp_path):
    assert read_metrics(tmp_path) == []
