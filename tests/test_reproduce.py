"""Rows of the tables of results: what runs, what is skipped, what is recorded."""

import json
import math
import pathlib
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import reproduce, rows
from benchmarks.rows import ROWS
from jaxattn.errors import UserError
from jaxattn.studies.trials import Outcome

TESTED = {
    "num_params": 396_155,
    "num_macs": 68_146_606,
    "model": "canet_tiny",
    "test_accuracy": 0.88,
    "last_test_accuracy": 0.87,
    "test_accuracy_ema": None,
    "images_per_s": 250.0,
    "wall_time_s": 90.0,
    "device": "1 x cpu",
    "host": "2 x EPYC",
    "versions": {"jax": "1.2"},
}


class Trainer:
    """Trains nothing, in no time: it leaves the files of a run after `epochs`."""

    def __init__(self, epochs=math.inf):
        self.epochs = epochs
        self.trained = []
        self.timeouts = []

    def __call__(self, trial, *, timeout_s):
        self.trained.append(trial.name)
        self.timeouts.append(timeout_s)
        config, workdir = trial.config, trial.workdir
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(json.dumps(config))
        done = int(min(self.epochs, config["num_epochs"]))
        rows = [
            {"step": e, "epoch/epoch": e, "epoch/val_accuracy": e / 100}
            for e in range(1, done + 1)
        ]
        (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        if done < config["num_epochs"]:
            return Outcome("stopped", "stopped by signal")
        results = {**TESTED, "seed": config["seed"], "epochs": config["num_epochs"]}
        (workdir / "results.json").write_text(json.dumps(results))
        return Outcome("finished")


@pytest.fixture
def call(tmp_path, capsys):
    """Reproduces rows by a trainer; returns what was printed."""

    def reproduce_rows(*names, train, minutes=10.0, dtype=None):
        runs = [
            run
            for name in names
            for run in reproduce.make_runs(name, "DATA", tmp_path / "out", dtype)
        ]
        deadline_s = time.monotonic() + 60 * minutes
        reproduce.reproduce(runs, tmp_path / "results", deadline_s, train)
        return capsys.readouterr().out

    return reproduce_rows


def records(tmp_path):
    return rows.read_records(tmp_path / "results")


def test_record_holds_what_the_run_was(call, tmp_path):
    call("canet_tiny", train=Trainer())
    (record,) = records(tmp_path)["canet_tiny"]
    assert record["command"] == (
        "python main.py --config configs/canet.py:tiny --workdir canet_tiny_seed42"
        " --config.seed=42 --config.data.path=cifar-10-batches-py"
    )
    assert record["config"]["optimizer"]["name"] == "adamw_then_sgd"
    assert record["config"]["data"]["path"] is None
    assert (record["epochs_done"], record["epochs"], record["seed"]) == (70, 70, 42)
    assert record["history"][-1] == {"step": 70, "epoch": 70, "val_accuracy": 0.7}
    assert record["versions"] == {"jax": "1.2"}
    assert record["host"] == "2 x EPYC"
    assert {"commit", "wall_time_s", "test_accuracy"} <= record.keys()


def test_what_is_done_is_skipped(call):
    call("canet_tiny", train=Trainer())
    again = Trainer()
    assert call("canet_tiny", train=again) == "canet_tiny_seed42: done before\n"
    assert again.trained == []


def test_recorded_runs_need_no_workdir(call, tmp_path):
    """Another machine goes on with the rest."""
    call("canet_tiny", train=Trainer())
    (tmp_path / "out").rename(tmp_path / "gone")
    again = Trainer()
    call("canet_tiny", "canet", train=again)
    assert again.trained == ["canet_seed42"]


def test_record_of_another_recipe_is_refused(call, tmp_path):
    call("canet_tiny", train=Trainer())
    path = tmp_path / "results" / "canet_tiny_seed42.json"
    record = json.loads(path.read_text())
    record["config"]["batch_size"] = 128
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="batch_size: 128 -> 256"):
        call("canet_tiny", train=Trainer())


def test_what_was_cut_goes_on(call, tmp_path):
    cut = Trainer(epochs=12)
    assert "epoch 12, to go on" in call("canet_tiny", train=cut)
    (record,) = records(tmp_path)["canet_tiny"]
    assert (record["epochs_done"], record["epochs"]) == (12, 70)
    assert not rows.is_done(record)
    again = Trainer()
    assert "test accuracy 88.00%" in call("canet_tiny", train=again)
    assert again.trained == cut.trained


def test_budget_bounds_every_run(call):
    """A run gets what is left, and time to save; under a minute none begins."""
    trainer = Trainer()
    call("canet_tiny", train=trainer, minutes=3)
    assert trainer.timeouts[0] == pytest.approx(180 - reproduce._SAVE_S, abs=2)
    late = Trainer()
    printed = call("canet", train=late, minutes=1)
    assert late.trained == []
    assert printed == "canet_seed42: no time left\n"


def test_without_time_what_there_is_is_recorded(call, tmp_path):
    """As of a run by the GPU suite, which may have had another dtype."""
    (run,) = reproduce.make_runs("canet", "DATA", tmp_path / "out", "bfloat16")
    Trainer()(run.trial, timeout_s=1)
    call("canet", train=None, minutes=0)
    (record,) = records(tmp_path)["canet"]
    assert rows.is_done(record)
    assert record["config"]["dtype"] == "bfloat16"


def test_mistake_ends_the_call(call):
    def fail(*_, **__):
        return Outcome("mistake", "data.path=DATA: no such file or folder")

    with pytest.raises(UserError, match=r"canet_tiny_seed42: data\.path=DATA"):
        call("canet_tiny", "canet", train=fail)


def test_rows_are_selected_by_name_and_group():
    cpu = ["canet_tiny_20_epochs", "enhanced_efficient_resnet_5000"]
    assert rows.select_rows(["canet"], ["cpu"]) == ["canet", *cpu]
    assert rows.select_rows(["vgg_a", "canet"], []) == ["vgg_a", "canet"]
    whole = rows.select_rows([], ["cifar10"])
    assert {"vgg11", "vgg_a_bn"} <= set(whole)
    for names, groups, message in (
        (["cant"], [], "did you mean 'canet'"),
        ([], ["gpu"], "--group='gpu'"),
    ):
        with pytest.raises(UserError, match=message):
            rows.select_rows(names, groups)


@pytest.mark.parametrize("name", ROWS)
def test_row_has_its_recipe(name, tmp_path):
    runs = reproduce.make_runs(name, "", tmp_path)
    assert [run.trial.config["seed"] for run in runs] == list(ROWS[name].seeds)
    assert {run.trial.config["data"]["name"] for run in runs} == {"cifar10"}


def test_rows_of_the_normalisation_study_are_its_runs(tmp_path):
    """Adam at 0.001 on all 50,000 images, for 50 epochs."""
    plain, bn = (
        reproduce.make_runs(name, "", tmp_path)[0] for name in ("vgg_a", "vgg_a_bn")
    )
    config = plain.trial.config
    assert config["model"] == {"name": "vgg_a", "width": None}
    assert config["schedule"] == {"name": "constant", "learning_rate": 1e-3}
    assert (config["optimizer"]["name"], config["data"]["val_fraction"]) == ("adam", 0)
    assert (config["num_epochs"], config["batch_size"], config["seed"]) == (
        50, 128, 2020,
    )  # fmt: skip
    config["model"]["name"] = "vgg_a_bn"
    assert bn.trial.config == config
    assert plain.command.endswith("--data cifar-10-batches-py --rows vgg_a")


def test_the_shortened_schedule_ends_where_the_whole_one_does(tmp_path):
    """CANet's learning rate falls to 0.06 of itself, in 20 epochs as in 70."""
    ends = []
    for name in ("canet_tiny", "canet_tiny_20_epochs"):
        (run,) = reproduce.make_runs(name, "", tmp_path)
        decay = run.trial.config["schedule"]["decay_rate"]
        ends.append(decay ** (run.trial.config["num_epochs"] - 1))
    # A step a whole epoch long: 70 epochs have one more of their smaller steps.
    assert ends[1] == pytest.approx(ends[0], rel=0.15)


def test_published_figures_are_the_sources():
    published = {name: row.published for name, row in ROWS.items() if row.published}
    assert published == {
        "canet_tiny": 88.66, "canet_light": 91.56, "canet": 93.50, "canet_pro": 93.56,
        "resnet18": 93.00, "resnet34": 93.56, "mobilenet_v2": 84.14,
        "shufflenet_v2_x0_5": 62.66, "vgg11": 85.75,
        "enhanced_efficient_resnet": 95.30, "vgg_a": 75.81, "vgg_a_bn": 84.29,
    }  # fmt: skip
