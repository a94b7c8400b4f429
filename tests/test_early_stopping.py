"""Runs that end before their last epoch, by accuracies that the tests decide."""

import json

import pytest
import smoke
from test_loop import rows_of, train

from jaxattn.errors import InterruptedRun, UserError
from jaxattn.training import loop, trainer
from jaxattn.training.checkpoints.checkpoint import Checkpoints
from jaxattn.training.evaluate import Evaluator
from jaxattn.training.guards.early_stopping import EarlyStopping, Plateau
from jaxattn.training.run import build

# The third epoch gains least; the fourth only equals it, and the fifth is the best.
ACCURACIES = (0.2, 0.5, 0.55, 0.55, 0.4, 0.9, 0.1, 0.1)


def config(**overrides):
    """One step an epoch."""
    result = smoke.get_config("small")
    result.num_epochs, result.batch_size, result.ema.decay = 8, 96, 0.0
    result.update_from_flattened_dict(
        {f"early_stopping.{key}": value for key, value in overrides.items()}
    )
    return result


class Scripted(Evaluator):
    """Gives each validation, of which there is one a step, the accuracy wanted."""

    def evaluate(self, variables, split, key=None, **kwargs):
        summary = super().evaluate(variables, split, key, **kwargs)
        if summary is None or split != "val":
            return summary
        step = len(Scripted.seen)
        Scripted.seen.append(split)
        return {**summary, "accuracy": ACCURACIES[step]}


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    monkeypatch.setattr(trainer, "Evaluator", Scripted)
    Scripted.seen = []


@pytest.mark.parametrize(
    ("kwargs", "epochs"),
    [
        ({}, 8),
        ({"patience": 1}, 4),
        ({"patience": 2}, 5),
        ({"patience": 3}, 8),
        ({"patience": 1, "min_delta": 0.1}, 3),
        ({"patience": 3, "min_delta": 0.1}, 5),
        ({"patience": 2, "min_delta": 0.5}, 3),
    ],
)
def test_patience_counts_epochs_since_the_last_gain(kwargs, epochs):
    """min_delta 0.1: epochs 3 to 5 gain nothing; 0.5: the sixth would have."""
    stopping, plateau, done = EarlyStopping(**kwargs), Plateau(), 0
    while done < len(ACCURACIES) and not stopping.is_due(plateau):
        plateau = stopping.follow(plateau, ACCURACIES[done])
        done += 1
    assert done == epochs


@pytest.mark.full
def test_it_ends_reports_and_goes_on(tmp_path, capsys):
    stopping = config(patience=2)
    results = train(stopping, tmp_path)
    said = capsys.readouterr().err
    line = "stopped early, after epoch 5 of 8: no gain in validation accuracy for 2 "
    assert said.count(line) == 1
    assert "--config.early_stopping.patience=0" in said
    assert (results["epochs"], results["stopped_early"]) == (5, True)
    assert (results["best_epoch"], results["best_val_accuracy"]) == (3, 0.55)
    assert "stopped early, after epoch 5 of 8" in (tmp_path / "report.txt").read_text()

    again = train(stopping, tmp_path)
    assert line in capsys.readouterr().err
    assert len(Scripted.seen) == 5
    assert again["test_accuracy"] == results["test_accuracy"]

    onward = train(config(patience=0), tmp_path)
    said = capsys.readouterr().err
    assert "config changed: early_stopping.patience: 2 -> 0" in said
    assert (onward["epochs"], onward["stopped_early"]) == (8, False)
    assert (onward["best_epoch"], onward["best_val_accuracy"]) == (6, 0.9)


@pytest.mark.slow
def test_interrupted_anywhere_it_ends_at_the_same_epoch(tmp_path, monkeypatch):
    """In the evaluations of epochs 2 and 4, and in the report."""
    for asked in (2, 3, 3):
        monkeypatch.setattr(loop, "Interrupt", lambda n=asked: smoke.InterruptedAt(n))
        with pytest.raises(InterruptedRun):
            train(config(patience=2), tmp_path)
    monkeypatch.setattr(loop, "Interrupt", lambda: smoke.InterruptedAt(10**6))
    results = train(config(patience=2), tmp_path)
    assert (results["epochs"], results["best_epoch"]) == (5, 3)
    assert Checkpoints(tmp_path, read_only=True).all_steps()[-1] == 5
    epochs = [row["step"] for row in rows_of(tmp_path) if "epoch/epoch" in row]
    assert epochs == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_run_that_goes_on_has_no_results_until_it_ends(tmp_path, monkeypatch):
    train(config(patience=1), tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["epochs"] == 4
    monkeypatch.setattr(loop, "Interrupt", lambda: smoke.InterruptedAt(0))
    with pytest.raises(InterruptedRun):
        train(config(), tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"early_stopping.patience=-1: must be at l"):
        EarlyStopping(patience=-1)
    without = config(patience=3)
    without.data.val_fraction = 0.0
    with pytest.raises(UserError, match=r"patience=3: must be 0 without a validation"):
        build(without, devices=smoke.one_device())
