import jax.numpy as jnp
import pytest

from jaxattn.training.meter import Meter


def metrics(*losses):
    values = jnp.array(losses)
    return {
        "loss": values,
        "accuracy": values / 10,
        "gradient_norm": jnp.ones(len(losses)),
        "learning_rate": jnp.arange(len(losses)) + 1.0,
    }


def test_rows_are_means_at_multiples_of_their_period():
    meter = Meter(2, 0)
    meter.add(metrics(1.0, 3.0, 5.0))
    meter.add(metrics(7.0))
    rows = meter.fetch(everything=True)
    assert [(row["step"], row["loss"]) for row in rows] == [(2, 2.0), (4, 6.0)]


def test_the_last_dispatch_is_left_running():
    meter = Meter(1, 10)
    meter.add(metrics(1.0))
    meter.add(metrics(2.0))
    assert [row["step"] for row in meter.fetch(everything=False)] == [11]
    assert [row["step"] for row in meter.fetch(everything=True)] == [12]


def test_an_epochs_mean_weighs_rows_by_their_steps():
    meter = Meter(2, 0)
    meter.add(metrics(1.0, 1.0, 4.0))
    meter.fetch(everything=True)  # a row of two steps and one of one
    assert meter.take_epoch()["train_loss"] == pytest.approx(2.0)
    assert meter.take_epoch() == {}


def test_a_resumed_epoch_takes_in_what_was_logged():
    whole = Meter(2, 0)
    whole.add(metrics(1.0, 2.0, 3.0, 4.0))
    logged = [
        {f"step/{k}" if k != "step" else k: v for k, v in row.items()}
        for row in whole.fetch(everything=True)
    ]
    resumed = Meter(2, 2)
    resumed.recall([{"step": 0, "epoch/loss": 9.0}, *logged], 0)
    resumed.add(metrics(3.0, 4.0))
    resumed.fetch(everything=True)
    means, expected = resumed.take_epoch(), whole.take_epoch()
    for key in ("train_loss", "train_accuracy"):
        assert means[key] == pytest.approx(expected[key])


def test_a_value_that_is_not_finite_gets_its_own_row():
    meter = Meter(10, 0)
    meter.add(metrics(1.0, 2.0, jnp.nan))
    rows = meter.fetch(everything=True)
    assert [row["step"] for row in rows] == [2, 3]
    assert rows[1]["learning_rate"] == 3.0
    assert rows[1]["gradient_norm"] == 1.0


def test_skipped_steps_are_no_part_of_an_epochs_mean():
    whole = Meter(10, 0)
    whole.add(metrics(1.0, jnp.nan, 3.0))
    logged = [
        {k if k == "step" else f"step/{k}": None if v != v else v for k, v in r.items()}
        for r in whole.fetch(everything=True)
    ]
    resumed = Meter(10, 3)
    resumed.recall(logged, 0)
    for meter in (whole, resumed):
        assert meter.take_epoch()["train_loss"] == pytest.approx(2.0)
