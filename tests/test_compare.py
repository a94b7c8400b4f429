"""Finished runs side by side, on workdirs made by hand."""

import csv
import io
import json
import pathlib

import numpy as np
import pytest

from jaxattn.cli import main
from jaxattn.errors import UserError
from jaxattn.studies import compare, trials
from jaxattn.studies.trials import Trial

RESULTS = {
    "model": "resnet10",
    "num_params": 320_098,
    "num_macs": 16_327_328,
    "data": "cifar10",
    "epochs": 3,
    "test_accuracy_ema": None,
    "images_per_s": 1234.5,
    "wall_time_s": 75.0,
    "device": "1 x cpu",
    "host": "2 x EPYC",
    "versions": {"jax": "1.2"},
}


def write_run(workdir, accuracy, *, seed=0, config=(), finished=True, **results):
    """Makes the workdir of a run; `config` changes keys of it by their dots."""
    values = {
        "seed": seed,
        "num_epochs": 3,
        "model": {"name": "resnet10", "attention": None, "stem": "cifar"},
        "schedule": {"learning_rate": 0.1},
        "data": {"name": "cifar10", "path": f"/{workdir.name}"},
    }
    for key, value in dict(config).items():
        section, _, name = key.rpartition(".")
        (values[section] if section else values)[name] = value
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(values))
    rows = [
        {"step": 4 * e, "epoch/epoch": e, "epoch/val_accuracy": accuracy - 0.1 / e}
        for e in (1, 2, 3)
    ]
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    if finished:
        tested = {"test_accuracy": accuracy, "last_test_accuracy": accuracy - 0.01}
        content = {**RESULTS, **tested, "seed": seed, **results}
        (workdir / "results.json").write_text(json.dumps(content))
    return workdir


ACCURACIES = (0.61, 0.63, 0.66)


@pytest.fixture
def groups(tmp_path):
    """Three seeds of a network, and one with attention and an average."""
    runs = [
        write_run(tmp_path / f"plain{seed}", accuracy, seed=seed)
        for seed, accuracy in enumerate(ACCURACIES)
    ]
    attentive = {"model.attention": "cbam", "data.val_fraction": 0.1}
    runs.append(
        write_run(tmp_path / "cbam", 0.7, config=attentive, test_accuracy_ema=0.71)
    )
    return compare.group_runs(compare.read_run(run) for run in runs)


def test_runs_are_grouped_whatever_their_seed_and_place(groups):
    assert [len(group.runs) for group in groups] == [3, 1]


def test_labels_show_what_tells_networks_of_one_name_apart(groups):
    """The network's key comes first, though another key differs as well."""
    labels = [group.label for group in groups]
    assert labels == ["resnet10, attention=None", "resnet10, attention=cbam"]


def test_label_has_as_many_keys_as_it_takes(tmp_path):
    changes = [
        {},
        {"model.attention": "scsa"},
        {"model.attention": "scsa", "schedule.learning_rate": 0.2},
    ]
    runs = [
        compare.read_run(write_run(tmp_path / str(i), 0.5, config=change))
        for i, change in enumerate(changes)
    ]
    assert [group.label for group in compare.group_runs(runs)] == [
        "resnet10, attention=None, learning_rate=0.1",
        "resnet10, attention=scsa, learning_rate=0.1",
        "resnet10, attention=scsa, learning_rate=0.2",
    ]


def test_key_at_its_placeholder_is_as_good_as_none(tmp_path):
    """A run of an earlier version belongs to those of this one."""
    change = {"data.max_train_examples": None, "versions": {"jax": "2"}}
    runs = [
        compare.read_run(write_run(tmp_path / "a", 0.5)),
        compare.read_run(write_run(tmp_path / "b", 0.5, seed=1, config=change)),
    ]
    assert len(compare.group_runs(runs)) == 1


def test_one_run_twice_is_refused(tmp_path):
    runs = [compare.read_run(write_run(tmp_path / name, 0.5, seed=7)) for name in "ab"]
    with pytest.raises(UserError, match="two runs of this config have the seed 7"):
        compare.group_runs(runs)


def test_csv_has_the_mean_and_the_sample_deviation(groups):
    plain, cbam = csv.DictReader(io.StringIO(compare.format_csv(groups)))
    expected = np.mean(ACCURACIES), np.std(ACCURACIES, ddof=1)
    got = float(plain["test_accuracy_mean"]), float(plain["test_accuracy_std"])
    np.testing.assert_allclose(got, expected, rtol=1e-12)  # float64 both
    assert plain["seeds"] == "0 1 2"
    assert cbam["test_accuracy_std"] == ""
    assert cbam["test_accuracy_ema_mean"] == "0.71"


def test_markdown_shows_figures_and_cost(groups):
    header, _, plain, cbam, *_ = compare.format_markdown(groups).splitlines()
    assert header == (
        "| network | data | n | test accuracy | last weights | averaged weights |"
        " parameters | MACs | images/s | time | epochs |"
    )
    # The deviation with n - 1 is 2.517 points, with n 2.055.
    assert plain == (
        "| `resnet10, attention=None` | cifar10 | 3 | 63.33 ± 2.52 % |"
        " 62.33 ± 2.52 % |  | 320,098 | 16,327,328 | 1,234 | 75 s | 3 |"
    )
    assert "| 1 | 70.00 % | 69.00 % | 71.00 % |" in cbam


def test_markdown_names_every_machine_and_every_difference(groups, tmp_path):
    other = write_run(tmp_path / "gpu", 0.64, seed=3, device="1 x H100", host=None)
    runs = [*groups[0].runs, compare.read_run(other), *groups[1].runs]
    lines = compare.format_markdown(compare.group_runs(runs)).splitlines()
    assert "- 1 x cpu (2 x EPYC); jax 1.2" in lines
    assert "- 1 x H100; jax 1.2" in lines
    assert "| `model.attention` |  | cbam |" in lines
    assert "| `data.val_fraction` |  | 0.1 |" in lines


def test_figure_has_a_dot_a_seed_and_a_band_over_seeds(groups):
    cost, epochs = compare.plot(groups).axes
    dots, mean, *_ = cost.lines
    np.testing.assert_allclose(dots.get_ydata(), 100 * np.array(ACCURACIES))
    np.testing.assert_allclose(mean.get_ydata(), 100 * np.mean(ACCURACIES))
    assert set(dots.get_xdata()) == {RESULTS["num_macs"]}
    (band,) = epochs.collections  # one run has none
    heights = band.get_paths()[0].vertices[:, 1]
    # Validation after epoch 1 is 0.1 below the end, after epoch 3 a third of it.
    np.testing.assert_allclose(heights.min(), 51)
    np.testing.assert_allclose(heights.max(), 66 - 10 / 3)


def test_runs_without_validation_are_drawn(tmp_path):
    write_run(tmp_path / "run", 0.5)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 4, "epoch/epoch": 1}\n')
    groups = compare.group_runs([compare.read_run(tmp_path / "run")])
    assert len(compare.plot(groups).axes) == 2


def foreign(folder):
    folder.mkdir()


def damaged(folder):
    write_run(folder, 0.5)
    (folder / "results.json").write_text("{")


def older(folder):
    write_run(folder, 0.5)
    (folder / "results.json").write_text('{"model": "canet"}')


@pytest.mark.parametrize(
    ("make", "message"),
    [(foreign, "holds no run"), (damaged, "not a run's"), (older, "num_params")],
)
def test_folder_of_no_run_is_named_in_one_line(capsys, tmp_path, make, message):
    make(tmp_path / "other")
    code = main(["compare", "--workdirs", str(tmp_path / "other")])
    err = capsys.readouterr().err
    assert code == 2
    assert message in err
    assert str(tmp_path / "other") in err
    assert err.count("\n") == 1


def test_unfinished_run_is_left_out_and_said(capsys, tmp_path):
    paths = [
        write_run(tmp_path / "done", 0.5),
        write_run(tmp_path / "cut", 0.5, seed=1, finished=False),
    ]
    out = tmp_path / "out"
    code = main(["compare", "--workdirs", *map(str, paths), "--out", str(out)])
    captured = capsys.readouterr()
    assert code == 0
    assert f"{paths[1]}: not finished, epoch 3 of 3; left out" in captured.err
    assert "| `resnet10` | cifar10 | 1 | 50.00 % |" in captured.out
    names = sorted(path.name for path in out.iterdir())
    assert names == ["comparison.csv", "comparison.md", "comparison.png"]


def compare_runs(*arguments):
    return main(["compare", "--workdirs", *map(str, arguments)])


def test_comparisons_without_a_place_get_one_each(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = write_run(tmp_path / "a", 0.5), write_run(tmp_path / "b", 0.25, seed=1)
    for run, folder in zip(runs, ("comparison", "comparison_2"), strict=True):
        assert compare_runs(run) == 0
        assert f"table and figure in {folder}\n" in capsys.readouterr().out
    first = (tmp_path / "comparison" / "comparison.md").read_text()
    assert "50.00 %" in first  # is still of the first run
    assert "25.00 %" in (tmp_path / "comparison_2" / "comparison.md").read_text()


def test_a_comparison_is_made_anew_where_it_is_told_to_be(tmp_path):
    out = tmp_path / "out"
    for run, share in (("a", 0.5), ("b", 0.25)):
        path = write_run(tmp_path / run, share)
        assert compare_runs(path, "--out", out) == 0
    assert "25.00 %" in (out / "comparison.md").read_text()


@pytest.mark.parametrize("name", ["comparison.md", "comparison.csv", "comparison.png"])
def test_what_is_no_comparison_is_kept(capsys, tmp_path, name):
    path = write_run(tmp_path / "a", 0.5)
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    assert compare_runs(path, "--out", out) == 2
    err = capsys.readouterr().err
    assert err == (
        f"jaxattn: {out / name}: is no comparison of jaxattn's, and is kept; name"
        " another folder\n"
    )
    assert {file.name: file.read_text() for file in out.iterdir()} == {name: "mine"}


# Training what is compared ---------------------------------------------------------

SMOKE = "tests/smoke.py"


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parent.parent)


def make(root, *overrides, seeds=(0,), paths=(SMOKE,)):
    flags = [f"--config.{override}" for override in overrides]
    return trials.make_trials(paths, seeds, root, flags)


@pytest.mark.usefixtures("at_root")
def test_every_recipe_has_a_trial_for_every_seed(tmp_path):
    planned = make(
        tmp_path, "num_epochs=2", seeds=(3, 5), paths=(SMOKE, f"{SMOKE}:steady")
    )
    found = [(trial.name, trial.config["seed"]) for trial in planned]
    assert found == [
        *[("smoke, seed 3", 3), ("smoke, seed 5", 5)],
        *[("smoke_steady, seed 3", 3), ("smoke_steady, seed 5", 5)],
    ]
    assert {trial.config["num_epochs"] for trial in planned} == {2}
    assert planned[0].workdir == tmp_path / "smoke" / "seed3"


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--configs", "none.py"], "--configs none.py: no such file"),
        (["--configs", SMOKE, SMOKE], "smoke, seed 0 once more"),
        (["--configs", SMOKE, "--config.sed=1"], "did you mean 'seed'"),
        (["--configs", SMOKE, "--conf.seed=1"], "Unknown command line flag"),
        (["--configs", SMOKE, "--config.seed=1", "1"], "1: not a flag"),
        (["--configs", "canett:tiny"], "did you mean 'canet'? choices: attention"),
        (["--workdirs", "a", "--seeds", "1"], "--seeds"),
        (["--workdirs", "a", "--config.seed=1"], "--config.seed=1"),
        ([], "--workdirs"),
    ],
)
def test_mistake_is_one_line_before_any_training(
    capsys, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr(trials, "train", None)
    root = ["--root", str(tmp_path / "root")] if "--configs" in arguments else []
    assert main(["compare", *arguments, *root]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("at_root")
def test_workdir_of_another_config_is_refused(tmp_path):
    (trial,) = make(tmp_path)
    trial.workdir.mkdir(parents=True)
    saved = json.loads(json.dumps(trial.config)) | {"versions": {"jax": "0"}}
    (trial.workdir / "config.json").write_text(json.dumps(saved))
    assert not trial.is_finished()
    (trial.workdir / "results.json").write_text("{}")
    assert trial.is_finished()
    (other,) = make(tmp_path, "batch_size=8", "log.every_steps=1")
    with pytest.raises(UserError, match=r"config \(batch_size: 16 -> 8\); use"):
        other.is_finished()


@pytest.mark.full
def test_what_is_asked_to_stop_stops(tmp_path):
    """Before its training began: nothing is saved and nothing has failed."""
    trial = Trial(name="a", config={}, workdir=tmp_path / "run")
    assert trials.train(trial, timeout_s=0.05).state == "stopped"


@pytest.mark.full
def test_mistake_in_a_run_comes_back_as_one_line(tmp_path):
    trial = Trial(name="a", config={"seed": -1}, workdir=tmp_path / "run")
    state, message = trials.train(trial)
    assert (state, message) == ("mistake", "config.num_epochs: required by Options")


def compare_smoke(tmp_path):
    command = ["compare", "--configs", SMOKE, "--root", str(tmp_path)]
    return main([*command, "--config.num_epochs=1", "--out", str(tmp_path / "out")])


@pytest.mark.usefixtures("at_root")
def test_compare_trains_once_what_is_not_finished(capsys, tmp_path, monkeypatch):
    trained = []

    def train(trial):
        trained.append(trial.name)
        write_run(trial.workdir, 0.5)
        (trial.workdir / "config.json").write_text(json.dumps(trial.config))
        return trials.Outcome("finished")

    monkeypatch.setattr(trials, "train", train)
    assert compare_smoke(tmp_path) == 0
    assert "smoke, seed 0 (1 of 1): finished" in capsys.readouterr().out
    assert compare_smoke(tmp_path) == 0
    assert "smoke, seed 0 (1 of 1): done before" in capsys.readouterr().out
    assert trained == ["smoke, seed 0"]


def begin(trial):
    """Leaves the workdir of a run that has begun."""
    trial.workdir.mkdir(parents=True)
    (trial.workdir / "config.json").write_text(json.dumps(trial.config))


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (("mistake", "data.path=x: no such file"), 2, "seed 0: data.path=x: no such"),
        (("stopped", "stopped by signal"), 130, "jaxattn: stopped"),
        (("failed", "the loss is nan"), 1, "failed: smoke, seed 0: the loss is nan"),
    ],
)
@pytest.mark.usefixtures("at_root")
def test_run_that_does_not_finish_ends_in_one_line(
    capsys, tmp_path, monkeypatch, outcome, code, message
):
    def train(trial):
        begin(trial)
        return trials.Outcome(*outcome)

    monkeypatch.setattr(trials, "train", train)
    assert compare_smoke(tmp_path) == code
    captured = capsys.readouterr()
    assert outcome[1] in captured.out
    assert message in captured.err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("at_root")
def test_compare_trains_in_processes(capsys, tmp_path):
    assert compare_smoke(tmp_path) == 0
    assert "| `efficient_resnet` | synthetic | 1 |" in capsys.readouterr().out
    log = tmp_path / "smoke" / "seed0" / "train.log"
    assert "epoch 1/1" in log.read_text()


# Sweeps ----------------------------------------------------------------------------

GRID = ["--grid", "schedule.learning_rate=0.1,0.01", "--grid", "batch_size=8,16"]


def learn(trial):
    """Stands in for a training: the test accuracy falls where validation rises."""
    rate, size = trial.config["schedule"]["learning_rate"], trial.config["batch_size"]
    if (rate, size) == (0.1, 8):
        return trials.Outcome("mistake", "batch_size=8: must be something else")
    if (rate, size) == (0.1, 16) and trial.config["seed"] == 1:
        return trials.Outcome("failed", "the loss is nan")
    begin(trial)
    seed, validation = trial.config["seed"], 0.6 + 0.001 * size - rate
    accuracies = {
        "best_val_accuracy": validation,
        "test_accuracy": 1 - validation,
        "last_test_accuracy": 0.5,
    }
    results = json.dumps({**RESULTS, **accuracies, "seed": seed})
    (trial.workdir / "results.json").write_text(results)
    return trials.Outcome("finished")


def sweep(capsys, root, *arguments):
    command = ["sweep", "--config", SMOKE, "--workdir", str(root), *arguments]
    return main(command), capsys.readouterr()


@pytest.mark.usefixtures("at_root")
def test_sweep_trains_every_combination_and_loses_none_to_a_failure(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(trials, "train", learn)
    code, said = sweep(capsys, tmp_path, *GRID, "--seeds", "0", "1")
    assert code == 1
    assert "(8 of 8): finished" in said.out
    assert said.err.splitlines() == [
        *(
            f"failed: schedule.learning_rate=0.1,batch_size=8, seed {seed}:"
            " batch_size=8: must be something else"
            for seed in (0, 1)
        ),
        "failed: schedule.learning_rate=0.1,batch_size=16, seed 1: the loss is nan",
    ]
    folder = tmp_path / "schedule.learning_rate=0.01,batch_size=16" / "seed1"
    config = json.loads((folder / "config.json").read_text())
    assert config["schedule"]["learning_rate"] == 0.01
    assert (config["batch_size"], config["seed"]) == (16, 1)


@pytest.mark.usefixtures("at_root")
def test_sweep_marks_the_best_by_validation(capsys, tmp_path, monkeypatch):
    """By test accuracy it would be the one of rate 0.1."""
    monkeypatch.setattr(trials, "train", learn)
    _, said = sweep(capsys, tmp_path, *GRID)
    marked = [line for line in said.out.splitlines() if "` **best** |" in line]
    label = "resnet10, batch_size=16, learning_rate=0.01"
    assert len(marked) == 1
    assert marked[0].startswith(f"| `{label}` **best** | cifar10 | 1 | 60.60 % | 39.40")
    assert marked[0] in (tmp_path / "comparison.md").read_text()


@pytest.mark.usefixtures("at_root")
def test_sweep_goes_on_with_what_is_not_finished(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "train", learn)
    sweep(capsys, tmp_path, *GRID)
    asked = []
    monkeypatch.setattr(
        trials, "train", lambda t: asked.append(t.name) or trials.Outcome("failed", "x")
    )
    code, said = sweep(capsys, tmp_path, *GRID)
    assert code == 1
    assert asked == ["schedule.learning_rate=0.1,batch_size=8, seed 0"]
    assert said.out.count("done before") == 3


@pytest.mark.usefixtures("at_root")
def test_values_of_a_grid_may_be_tuples(capsys, tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(
        trials,
        "train",
        lambda t: (
            rates.append(t.config["normalize"]["mean"]) or trials.Outcome("failed")
        ),
    )
    grid = "normalize.mean=(0.5,0.5,0.5),(0.4,)"
    assert sweep(capsys, tmp_path, "--grid", grid)[0] == 1
    assert rates == [(0.5, 0.5, 0.5), (0.4,)]


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "learning_rate=0.1"], "--grid learning_rate: no such key"),
        (["--grid", "batch_size=a"], "--grid batch_size=a: invalid literal"),
        (["--grid", "batch_size"], "'batch_size' must be KEY=VALUE,VALUE"),
        (["--grid", "batch_size=8,8"], "batch_size=8, seed 0 once more"),
        (["--grid", "batch_size=8", "--grid", "batch_size=16"], "each key once"),
        ([], "--grid"),
    ],
)
def test_mistake_in_a_sweep_is_one_line(
    capsys, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr(trials, "train", None)
    code, said = sweep(capsys, tmp_path / "root", *arguments)
    assert code == 2
    assert message in said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
