"""What compares two trees by bits, without training anything."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import rail
from jaxattn.config.file import load_config
from jaxattn.training.run import build

FIGURES = {
    (1, "loss"): 2.5,
    (1, "gradient_norm"): 1.0,
    (2, "loss"): 0.0,
    (20, "test_accuracy"): 0.25,
}


# Recipes ---------------------------------------------------------------------------


@pytest.mark.parametrize("network", rail.NETWORKS)
def test_recipe_is_a_run_of_20_steps_in_two_epochs(network, tmp_path):
    rail.write_config(tmp_path / "config.py", network)
    run = build(load_config(str(tmp_path / "config.py")))
    assert (run.total_steps, run.steps_per_epoch) == (20, 10)
    assert run.config["model"]["name"] == network
    # Else a row is a mean over steps, and the older half cannot be resumed.
    assert (run.log.every_steps, run.options.keep_checkpoints) == (1, 2)


def test_recipes_cover_optimizers_schedules_loaders_and_augmentation():
    configs = [rail.make_config(network) for network in rail.NETWORKS]

    def values(section, key):
        return {config[section].get(key) for config in configs}

    # Those of the oldest commit to compare with: it has no numbers of a newer one.
    assert values("optimizer", "name") == {"sgd", "adam", "adamw", "adamw_then_sgd"}
    schedules = {"constant", "cosine", "exponential", "step", "multi_step"}
    assert values("schedule", "name") == schedules
    assert values("pipeline", "loader") == {"resident", "streamed"}
    assert values("augment", "crop_fill") >= {"zero", "reflect", "edge"}
    assert {config.get("accumulate_steps") for config in configs} == {None, 2}


# Comparison ------------------------------------------------------------------------


def test_equal_figures_have_no_difference():
    assert rail.first_difference(FIGURES, dict(FIGURES)) is None


def test_last_bit_is_a_difference():
    next_float = float(np.nextafter(2.5, 3.0))
    found = rail.first_difference(FIGURES, FIGURES | {(1, "loss"): next_float})
    assert found == "step 1, loss: 2.5 in BASE, 2.5000000000000004 here"


def test_sign_of_zero_is_a_difference():
    found = rail.first_difference(FIGURES, FIGURES | {(2, "loss"): -0.0})
    assert found == "step 2, loss: 0.0 in BASE, -0.0 here"


def test_figure_of_one_side_is_a_difference():
    less = {key: value for key, value in FIGURES.items() if key != (1, "loss")}
    assert (
        rail.first_difference(FIGURES, less) == "step 1, loss: 2.5 in BASE, none here"
    )
    assert (
        rail.first_difference(less, FIGURES) == "step 1, loss: none in BASE, 2.5 here"
    )


def test_first_of_several_differences_is_told():
    here = FIGURES | {(20, "test_accuracy"): 0.5, (2, "loss"): 1.0}
    assert rail.first_difference(FIGURES, here).startswith("step 2, loss:")


# Runs ------------------------------------------------------------------------------


def make_workdir(folder, steps, versions):
    """Writes what a run leaves, of which `rail` reads."""
    rows = [{"step": s, "step/loss": 1.0 / s, "step/gradient_norm": 1.0} for s in steps]
    rows.append({"step": 20, "epoch/val_loss": 0.5, "epoch/images_per_s": 3.0})
    results = dict.fromkeys(rail._REPORTED, 0.75) | {"versions": versions}
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "results.json").write_text(json.dumps(results))
    for step in (10, 20):
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    return folder


def test_figures_are_those_of_steps_validation_and_report(tmp_path):
    workdir = make_workdir(tmp_path / "run", range(1, 21), {})
    figures = rail.read_figures(workdir, 0, "off")
    assert figures[3, "loss"] == 1 / 3
    assert figures[20, "val_loss"] == 0.5
    assert figures[20, "test_loss"] == 0.75
    assert (20, "images_per_s") not in figures  # no two runs agree on it
    assert len(figures) == 2 * 20 + 1 + len(rail._REPORTED)


@pytest.mark.parametrize(
    ("logged", "start"), [(range(1, 20), 0), (range(1, 21), 10), ((), 0)]
)
def test_other_steps_than_wanted_are_refused(logged, start, tmp_path):
    workdir = make_workdir(tmp_path / "run", logged, {})
    with pytest.raises(rail.RunError, match=f"not {start + 1} to 20"):
        rail.read_figures(workdir, start, "off")


@pytest.mark.parametrize(
    ("versions", "kernels", "used"),
    [({"convolutions": "oneDNN"}, "off", "oneDNN"), ({}, "on", "XLA")],
)
def test_other_convolutions_than_wanted_are_refused(versions, kernels, used, tmp_path):
    workdir = make_workdir(tmp_path / "run", range(1, 21), versions)
    with pytest.raises(rail.RunError, match=f"{used}'s with kernels {kernels}"):
        rail.read_figures(workdir, 0, kernels)


def test_run_is_cut_back_in_a_copy(tmp_path):
    workdir = make_workdir(tmp_path / "run", range(1, 21), {})
    copy = rail.cut_back(workdir, tmp_path / "copy")
    assert [path.name for path in copy.rglob("*")] == ["checkpoints", "10"]
    assert len([*workdir.rglob("*")]) == 5


# The whole -------------------------------------------------------------------------


def fake_trees(monkeypatch, here):
    """Replaces what trains: BASE's figures are `FIGURES`, this tree's `here`."""

    def train(tree, config, workdir, start_step=0):
        assert (config.exists(), workdir.exists()) == (True, False)
        if tree.root == rail.ROOT and isinstance(here, Exception):
            raise here
        figures = here if tree.root == rail.ROOT else FIGURES
        return {key: value for key, value in figures.items() if key[0] > start_step}

    monkeypatch.setattr(rail.Tree, "prepare", lambda tree: tree.folder.mkdir())
    monkeypatch.setattr(rail.Tree, "train", train)
    monkeypatch.setattr(rail.Tree, "evaluate", lambda *_: 0.25)
    monkeypatch.setattr(rail, "cut_back", lambda _, copy: copy)


def compare(tmp_path, monkeypatch, here):
    fake_trees(monkeypatch, here)
    base = rail.Tree(tmp_path, tmp_path / "base", "off")
    this = rail.Tree(rail.ROOT, tmp_path / "here", "off")
    return rail.compare_trees(base, this, ["canet_tiny", "vgg_a_bn"])


def test_same_trees_print_a_line_for_each_comparison(tmp_path, monkeypatch, capsys):
    assert compare(tmp_path, monkeypatch, FIGURES) == 0
    assert capsys.readouterr().out.splitlines() == [
        "canet_tiny, kernels off: same",
        "canet_tiny resumed, kernels off: same",
        "canet_tiny evaluated, kernels off: same",
        "vgg_a_bn, kernels off: same",
    ]


def test_differences_are_counted(tmp_path, monkeypatch, capsys):
    assert compare(tmp_path, monkeypatch, FIGURES | {(2, "loss"): 1.0}) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "canet_tiny, kernels off: step 2, loss: 0.0 in BASE, 1.0 here"
    assert lines[1] == "canet_tiny resumed, kernels off: same"  # from after step 10


def test_failing_run_is_a_difference(tmp_path, monkeypatch, capsys):
    assert compare(tmp_path, monkeypatch, rail.RunError("no such key")) == 3
    assert "vgg_a_bn, kernels off: failed: no such key" in capsys.readouterr().out


def test_worktree_is_removed_on_interruption(tmp_path):
    def git(*arguments):
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True
        )
        return done.stdout.decode().splitlines()

    def leave_by_ctrl_c():
        with rail.checked_out(tmp_path, "HEAD", tree):
            assert (tree / "file").read_text() == "committed"
            (tree / "written").touch()
            raise KeyboardInterrupt

    tree = tmp_path / "tree"
    (tmp_path / "file").write_text("committed")
    git("init", "--quiet")
    git("add", "file")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.invalid")
    git(*identity, "commit", "--quiet", "--message", "first")
    (tmp_path / "file").write_text("present")
    with pytest.raises(KeyboardInterrupt):
        leave_by_ctrl_c()
    assert not tree.exists()
    assert len(git("worktree", "list")) == 1


def test_unknown_commit_is_one_line_and_exit_code_2(capsys):
    assert rail.main(["no-such-commit"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no-such-commit" in line
