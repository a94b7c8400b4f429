"""The study of batch normalisation: what it records, resuming, and its report."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import smoke
from PIL import Image
from tiers import full_but

from configs import vgg_bn
from jaxattn import UserError
from jaxattn.cli import main
from jaxattn.errors import InterruptedRun
from jaxattn.studies import bn_landscape
from jaxattn.studies.bn_curves import (
    NETWORKS,
    Curves,
    Member,
    by_epoch,
    compare_widths,
    read_curves,
)
from jaxattn.studies.bn_network import Landscape, Network
from jaxattn.studies.bn_report import make_figures, measure
from jaxattn.training.run import build

RATES, FACTORS = (0.003, 0.001), (0.5, 1.0)
EPOCHS, STEPS = 2, 3  # an epoch
MEMBERS = [
    Member(network, {"plain": "vgg_a", "bn": "vgg_a_bn"}[network], rate)
    for rate in RATES
    for network in NETWORKS
]


def tiny(**overrides):
    config = vgg_bn.get_config()
    config.update_from_flattened_dict(
        {
            "num_epochs": EPOCHS,
            "batch_size": 16,
            "learning_rates": RATES,
            "model.width": 2,
            "data.name": "synthetic",
            "data.image_size": 32,
            "landscape.every_steps": 2,
            "landscape.step_factors": FACTORS,
            "log.tensorboard": False,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
    )
    config.unlock()
    config.data.num_train, config.data.num_test = 40, 20
    config.data.num_classes = 4
    return config.lock()


def study(config, workdir):
    return bn_landscape.run_study(config, workdir, devices=smoke.one_device())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("study")
    return workdir, study(tiny(), workdir)


@pytest.fixture(scope="module")
def curves(undisturbed):
    return read_curves(undisturbed[0], MEMBERS, FACTORS)


@pytest.mark.full
def test_every_step_and_epoch_is_recorded(curves):
    for c in curves.values():
        for values in (c.loss, c.gradient_max, c.gradient_min):
            assert values.shape == (len(RATES), EPOCHS * STEPS)
        for values in (c.train_loss, c.train_accuracy, c.test_accuracy):
            assert values.shape == (len(RATES), EPOCHS)
        # Steps 0 and 2 of each epoch, counted from 1.
        np.testing.assert_array_equal(c.look_steps, [1, 3, 4, 6])
        assert c.gradient_change.shape == (len(RATES), 4, len(FACTORS))


@pytest.mark.full
def test_an_epochs_loss_is_the_mean_of_its_steps(curves):
    for c in curves.values():
        np.testing.assert_allclose(c.train_loss, by_epoch(c.loss, EPOCHS), rtol=1e-12)


@pytest.fixture(scope="module", params=full_but(NETWORKS))
def first_step(request):
    """A network's looking step, its state before and after, and what it recorded."""
    member = MEMBERS[NETWORKS.index(request.param)]
    values = tiny().to_dict()
    run_config = bn_landscape.make_run_config(values, member.model, member.rate)
    run = build(run_config, devices=smoke.one_device())
    network = Network(run, Landscape(every_steps=2, step_factors=FACTORS), bool)
    state = network.init_state(member.rate)
    before = jax.tree.map(np.array, state)  # a copy: the step takes the state
    placed = network.trainer.place([next(network.trainer.feeds(0, 1))])
    after, metrics = network.looking_step(state, placed)
    metrics = {key: float(value[0]) for key, value in metrics.items()}
    return run, before, jax.device_get(after), metrics


def loss_and_gradient(run, params, batch_stats):
    """By hand: of the first batch, which is not transformed."""
    examples = [run.data.train[int(i)] for i in run.order(0)]
    x = np.stack([e["image"] for e in examples]).astype(np.float32) / 255
    labels = np.array([e["label"] for e in examples])

    @jax.jit
    def loss(params):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, _ = run.model.apply(
            variables, (x - 0.5) / 0.5, train=True, mutable=["batch_stats"]
        )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -jnp.mean(chosen)

    return jax.value_and_grad(loss)(params)


def flat_norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


# Of relative size: float32 rounds, and the two programs sum in other orders.
ROUNDING = 1e-4


def test_extremes_are_of_the_last_layers_gradient(first_step):
    run, before, _, metrics = first_step
    loss, gradient = loss_and_gradient(run, before.params, before.batch_stats)
    kernel = gradient["classifier"]["4"]["kernel"]
    assert kernel.shape == (16, 4)
    assert metrics["loss"] == pytest.approx(float(loss), rel=ROUNDING)
    assert metrics["gradient_max"] == pytest.approx(float(kernel.max()), rel=ROUNDING)
    assert metrics["gradient_min"] == pytest.approx(float(kernel.min()), rel=ROUNDING)


def test_looks_are_losses_and_gradients_along_the_step(first_step):
    run, before, after, metrics = first_step
    stats = before.batch_stats
    step = optax.tree.sub(after.params, before.params)
    assert metrics["step_length"] == pytest.approx(flat_norm(step), rel=ROUNDING)
    _, gradient = loss_and_gradient(run, before.params, stats)
    for factor in FACTORS:
        there = optax.tree.add_scale(before.params, factor, step)
        loss, moved = loss_and_gradient(run, there, stats)
        change = flat_norm(optax.tree.sub(moved, gradient))
        assert metrics[f"loss_at_{factor:g}"] == pytest.approx(float(loss), rel=1e-4)
        # A difference of gradients that are ten times as large.
        assert metrics[f"gradient_change_at_{factor:g}"] == pytest.approx(
            change, rel=10 * ROUNDING
        )


@pytest.mark.full
def test_looking_changes_no_step(undisturbed, curves, tmp_path):
    study(tiny(landscape__every_steps=0), tmp_path)
    without = read_curves(tmp_path, MEMBERS, FACTORS)
    for network, c in curves.items():
        assert not len(without[network].look_steps)
        # Another program may fuse, and so round, in other ways.
        np.testing.assert_allclose(without[network].loss, c.loss, rtol=1e-3)
    assert "landscape" in undisturbed[1]
    assert not (tmp_path / "landscape.png").exists()


@pytest.mark.full
def test_runs_of_one_network_start_alike_and_those_of_two_do_not(curves):
    plain, bn = curves["plain"], curves["bn"]
    np.testing.assert_array_equal(plain.loss[0, 0], plain.loss[1, 0])
    np.testing.assert_array_equal(bn.gradient_max[0, 0], bn.gradient_max[1, 0])
    assert plain.loss[0, -1] != plain.loss[1, -1]
    assert plain.loss[0, 0] != bn.loss[0, 0]


@pytest.fixture(scope="module")
def of_one_rate(undisturbed):
    """What the runs with the first learning rate recorded."""
    return records(undisturbed[0])


def records(workdir):
    """All arrays of the first rate, but those that depend on the clock."""
    read = read_curves(workdir, MEMBERS[:2], FACTORS)
    arrays = {network: dataclasses.asdict(c) for network, c in read.items()}
    for values in arrays.values():
        del values["images_per_s"], values["model"]
    return arrays


@pytest.mark.full
def test_interrupted_anywhere_it_records_the_same(of_one_rate, tmp_path, monkeypatch):
    config = tiny(learning_rates=RATES[:1])
    # In a step, in an evaluation, in the second run; it is asked 8 times an epoch.
    for n in (1, 3, 18):
        monkeypatch.setattr(
            bn_landscape, "Interrupt", lambda n=n: smoke.InterruptedAt(n)
        )
        with pytest.raises(InterruptedRun, match="repeat the command"):
            study(config, tmp_path)
    monkeypatch.setattr(bn_landscape, "Interrupt", lambda: smoke.InterruptedAt(10**9))
    study(config, tmp_path)
    chex.assert_trees_all_equal(records(tmp_path), of_one_rate)


@pytest.mark.slow
def test_killed_after_an_epoch_it_goes_on_from_there(
    of_one_rate, tmp_path, monkeypatch
):
    config = tiny(learning_rates=RATES[:1])
    monkeypatch.setattr(bn_landscape, "_SECONDS_BETWEEN_SAVES", 0.0)
    log = bn_landscape._Training._log

    def kill(self, meter, *, everything):
        if self._step > STEPS + 1:
            raise MemoryError  # which nothing here catches
        log(self, meter, everything=everything)

    monkeypatch.setattr(bn_landscape._Training, "_log", kill)
    with pytest.raises(MemoryError):
        study(config, tmp_path)
    assert [path.name for path in tmp_path.glob("*/checkpoints/[0-9]*")] == [str(STEPS)]
    monkeypatch.setattr(bn_landscape._Training, "_log", log)
    study(config, tmp_path)
    chex.assert_trees_all_equal(records(tmp_path), of_one_rate)


@pytest.mark.full
def test_another_config_is_refused(undisturbed):
    with pytest.raises(UserError, match=r"another config \(num_epochs: 2 -> 3\)"):
        study(tiny(num_epochs=3), undisturbed[0])


@pytest.mark.full
def test_the_report_is_made_again_without_training(undisturbed):
    workdir, results = undisturbed
    (workdir / "results.json").unlink()
    assert study(tiny(), workdir) == results


@pytest.mark.full
def test_a_study_leaves_its_files(undisturbed):
    workdir, results = undisturbed
    assert json.loads((workdir / "results.json").read_text()) == results
    assert list(results["runs"]) == [m.name for n in NETWORKS for m in MEMBERS
                                     if m.network == n]  # fmt: skip
    for figure in ("loss_range", "gradient_range", "accuracy", "landscape"):
        with Image.open(workdir / f"{figure}.png") as image:
            assert image.width > 1000
    with np.load(workdir / "curves.npz") as arrays:
        assert arrays["bn_loss"].shape == (len(RATES), EPOCHS * STEPS)
    assert "vgg_a0.003" in (workdir / "report.txt").read_text()
    # The weights of finished runs are not kept: gigabytes at full size.
    assert not list(workdir.glob("*/checkpoints"))


def made_up(**changes):
    """Curves of two rates over 3 epochs of 4 steps."""
    rng = np.random.default_rng(0)
    loss, top = rng.random((2, 12)), rng.random((2, 12))
    accuracy = np.array([[0.1, 0.5, 0.4], [0.2, 0.3, 0.6]])
    look = rng.random((2, 5, 2))
    values = {
        "model": "vgg_a", "rates": np.array([0.01, 0.001]), "loss": loss,
        "gradient_max": top, "gradient_min": -top, "train_loss": accuracy,
        "train_accuracy": accuracy, "test_accuracy": accuracy,
        "images_per_s": np.array([9.0, np.nan]), "look_steps": np.arange(5),
        "step_length": 2 + look[..., 0], "look_loss": look, "gradient_change": look,
    }  # fmt: skip
    return Curves(**{**values, **changes})


def test_bands_are_the_extremes_over_the_rates():
    plain, bn = made_up(), made_up(model="vgg_a_bn", loss=np.zeros((2, 12)))
    curves = {"plain": plain, "bn": bn}
    figure = make_figures(curves, FACTORS)["loss_range"]
    high, low = (line.get_ydata() for line in figure.axes[0].lines[:2])
    np.testing.assert_array_equal(high, np.maximum(*plain.loss))
    np.testing.assert_array_equal(low, np.minimum(*plain.loss))
    band = measure(curves, FACTORS)["loss_band"]
    width = np.maximum(*plain.loss) - np.minimum(*plain.loss)
    assert band["plain_by_epoch"] == pytest.approx(width.reshape(3, 4).mean(1))
    assert band["plain_mean"] == pytest.approx(width.mean())
    assert band["bn_mean"] == 0


def test_measured_figures_of_a_run():
    curves = {"plain": made_up(), "bn": made_up(model="vgg_a_bn")}
    figures = measure(curves, FACTORS)["runs"]["vgg_a0.01"]
    assert (figures["best_epoch"], figures["best_test_accuracy"]) == (2, 0.5)
    assert figures["last_test_accuracy"] == 0.4
    assert figures["largest_drop_of_test_accuracy"] == pytest.approx(0.1)
    assert figures["images_per_s"] == 9.0


def test_smoothness_is_the_largest_change_per_distance():
    change = np.array([[[1.0, 3.0]]])
    curves = made_up(step_length=np.array([[2.0]]), gradient_change=change)
    # 1 over 0.5 * 2, and 3 over 1 * 2.
    np.testing.assert_allclose(curves.smoothness(FACTORS), [[1.5]])


@pytest.mark.parametrize(
    ("bn", "since", "epochs"),
    [
        ([2, 0, 0], 2, 2),
        ([0, 0, 0], 1, 3),
        ([0, 2, 0], 3, 2),
        ([0, 0, 2], None, 2),
        ([1, 1, 1], None, 0),  # as wide is not narrower
    ],
)
def test_since_when_a_band_is_the_narrower_one(bn, since, epochs):
    compared = compare_widths(np.ones(3), np.array(bn, float))
    assert compared["bn_narrower_since_epoch"] == since
    assert compared["bn_narrower_epochs"] == epochs


def test_the_gradients_figure_is_of_the_last_rate():
    plain = made_up()
    figure = make_figures({"plain": plain, "bn": made_up()}, FACTORS)["gradient_range"]
    high = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(high, plain.gradient_max[-1].reshape(3, 4).mean(1))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rates": ()}, r"learning_rates=\(\): must be numbers above 0"),
        ({"learning_rates": (0.1, 0.1)}, "must be all different"),
        ({"model__bn": "vgg_b"}, "model.bn='vgg_b': did you mean"),
        ({"model__bn": "vgg_a"}, "the same as model.plain"),
        ({"landscape__step_factors": (0.0,)}, "step_factors.*numbers above 0"),
        ({"landscape__every_steps": -1}, "every_steps=-1: must be at least 0"),
        ({"data__image_size": 64}, "images of 64 x 64 x 3 do not fit .*32..63"),
    ],
)
def test_a_mistake_is_named(overrides, message, tmp_path):
    with pytest.raises(UserError, match=message):
        study(tiny(**overrides), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_the_command_takes_overrides(tmp_path, capsys):
    command = ["bn-landscape", "--config", str(smoke.ROOT / "configs" / "vgg_bn.py")]
    command += ["--workdir", str(tmp_path / "study")]
    assert main([*command, "--config.num_epochs=0"]) == 2
    assert capsys.readouterr().err == "jaxattn: num_epochs=0: must be at least 1\n"
    assert main([*command, "--config.epochs=1"]) == 2
    assert "no such key; did you mean 'num_epochs'?" in capsys.readouterr().err


@pytest.mark.slow
def test_events_have_the_projects_tags(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny(learning_rates=(0.001,), num_epochs=1, log__tensorboard=True)
    study(config, tmp_path)
    events = EventAccumulator(str(tmp_path / "vgg_a_bn0.001" / "tensorboard"))
    tags = set(events.Reload().Tags()["tensors"])
    name = "vgg_a_bn0.001"
    assert tags >= {
        f"Loss/train_step_of_{name}", f"Loss/train_epoch_of_{name}",
        f"Accuracy/epoch_train_of_{name}", f"Accuracy/epoch_val_of_{name}",
        f"{name}/GradMax_Step", f"{name}/GradMin_Step", f"{name}/GradMaxMinusMin_Step",
        f"{name}/GradMax_EpochAvg", f"{name}/GradMin_EpochAvg",
        f"{name}/GradRange_EpochAvg",
    }  # fmt: skip
    steps = [e.step for e in events.Tensors(f"Loss/train_step_of_{name}")]
    assert steps == [1, 2, 3]
    figures = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()
    assert {"LossRange_Figure_comparison", "GradRange_Figure_comparison"} <= set(
        figures["tensors"] + figures["images"]
    )


def test_published_study():
    config = vgg_bn.get_config()
    assert (config.num_epochs, config.batch_size, config.seed) == (50, 128, 2020)
    assert config.learning_rates == (0.001, 0.002, 0.0005, 0.0001)
    assert config.optimizer.to_dict() == {"name": "adam", "weight_decay": 0.0}
    assert config.normalize.to_dict() == {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert config.data.val_fraction == 0


def test_a_study_of_an_earlier_version_goes_on(tmp_path):
    """Whose record does not say yet how photos were resized."""
    record = {"seed": 0, "dataset": {"class_names": ["a"]}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    now = {**record, "dataset": {**record["dataset"], "resize_px": 256}}
    assert bn_landscape._take_config(tmp_path, now) == []
