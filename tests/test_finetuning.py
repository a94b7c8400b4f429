"""What is frozen stays, what thaws begins anew, and every layer has its rate."""

import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import smoke
from flax import traverse_util
from tiers import full_but

from jaxattn import create_model
from jaxattn.errors import InterruptedRun, UserError
from jaxattn.models.classes import flat
from jaxattn.ops import BatchNorm
from jaxattn.training import build, loop
from jaxattn.training.checkpoints.checkpoint import Checkpoints
from jaxattn.training.finetuning import LayeredNetwork, make_finetuning, make_optimizers
from jaxattn.training.optim import RunLength, make_schedule
from jaxattn.training.options import Options

ONE = smoke.one_device()


# Rates and starts, by a reference ---------------------------------------------------


class Small(nn.Module):
    """Three layers of two parameters each."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        x = nn.Conv(3, (1, 1), name="first")(x)
        x = jnp.mean(nn.Conv(4, (1, 1), name="second")(x), (1, 2))
        return nn.Dense(self.num_classes, name="head")(x)


NETWORK, NAMES = Small(), ("first", "second", "head")
LENGTH = RunLength(num_epochs=4, steps_per_epoch=2)
SCHEDULE = {"name": "cosine", "learning_rate": 0.02, "update_per": "step"}


def finetuning(optimizer, network=NETWORK, **options):
    schedule = make_schedule(**SCHEDULE, length=LENGTH)
    optimizers = make_optimizers(
        schedule=schedule, length=LENGTH, learning_rate=0.02, **optimizer
    )
    options = Options(seed=0, num_epochs=4, batch_size=2, **options)
    return make_finetuning(options, LayeredNetwork(network, (2, 2, 3)), optimizers)


class Reference:
    """One parameter of a PyTorch optimizer, which counts its own steps."""

    def __init__(self, p, start, rate):
        self.p, self.start, self.rate = p.astype(np.float64), start, rate
        self.mu = self.nu = 0.0

    def sgd(self, i, g):
        self.mu = 0.9 * self.mu + g + 0.1 * self.p
        self.p = self.p - self.rate * cosine(i) * self.mu

    def adamw(self, i, g):
        t = i - self.start + 1
        self.mu, self.nu = 0.9 * self.mu + 0.1 * g, 0.999 * self.nu + 0.001 * g**2
        mu, nu = self.mu / (1 - 0.9**t), self.nu / (1 - 0.999**t)
        step = mu / (np.sqrt(nu) + 1e-8) + 0.1 * self.p
        self.p = self.p - self.rate * cosine(i) * step

    def adamw_then_sgd(self, i, g):
        self.mu = 0.0 if i == 6 else self.mu  # three of four epochs
        (self.adamw if i < 6 else self.sgd)(i, g)


def cosine(i):
    return 0.5 * (1 + math.cos(math.pi * i / 8))


OPTIMIZERS = {
    "sgd": {"weight_decay": 0.1},
    "adamw": {"weight_decay": 0.1},
    "adamw_then_sgd": {"weight_decay": 0.1, "switch_fraction": 0.75},
}


@pytest.mark.parametrize(
    ("unfreeze_epochs", "starts"),
    full_but([((), (0, 0, 0)), ((1, 3), (6, 2, 0))], ((1, 3), (6, 2, 0))),
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trajectory_is_that_of_a_hand_written_optimizer(name, unfreeze_epochs, starts):
    """With rates by layer, and parameters that begin to learn late."""
    tuning = finetuning(
        {"name": name, **OPTIMIZERS[name], "clip_norm": 1.0, "layer_decay": 0.5,
         "head_rate": 0.03},
        unfreeze_epochs=unfreeze_epochs,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shape = jax.ShapeDtypeStruct((1, 2, 2, 3), jnp.float32)
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), shape)["params"]
    params = jax.tree.map(lambda v: np.float32(rng.normal(size=v.shape)), shapes)
    of_layer = dict(
        zip(NAMES, zip(starts, (0.005, 0.01, 0.03), strict=True), strict=True)
    )
    references = {
        path: Reference(p, *of_layer[path[0]])
        for path, p in traverse_util.flatten_dict(params).items()
    }
    state = tuning.optimizer().init(params)
    update = {phase: jax.jit(tuning.optimizer(phase).update) for phase in tuning.phases}
    for i in range(8):
        grads = {
            path: rng.normal(size=r.p.shape) * (i >= r.start)
            for path, r in references.items()
        }
        phase = tuning.phase(i // 2)
        tree = traverse_util.unflatten_dict(jax.tree.map(np.float32, grads))
        updates, state = update[phase](tree, state, params)
        params = jax.tree.map(np.add, params, updates)
        norm = math.sqrt(sum(np.sum(g**2) for g in grads.values()))
        for path, r in references.items():
            if i >= r.start:
                getattr(r, name)(i, grads[path] * min(1, 1 / (norm + 1e-6)))
        for path, p in flat(params).items():
            np.testing.assert_allclose(p, references[path].p, rtol=1e-4, atol=1e-6)


def test_rates_fall_from_the_head_to_the_image():
    tuning = finetuning({"name": "sgd", "layer_decay": 0.5, "head_rate": 0.2})
    rates = {path[1]: 0.02 * factor for path, factor in tuning.factors.items()}
    assert rates == pytest.approx({"first": 0.005, "second": 0.01, "head": 0.2})
    assert list(tuning.notes()) == [
        "learning rates: 0.005 (first), 0.01 (second), 0.2 (head)"
    ]
    assert not finetuning({"name": "sgd", "layer_decay": 1.0}).factors


# Runs ------------------------------------------------------------------------------


class Net(nn.Module):
    """A stem, two stages of a convolution each, and a head."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, x, *, train=False):
        for i, name in enumerate(("stem", "stage1.0", "stage2.0")):
            x = nn.Conv(4, (3, 3), 1 if i == 0 else 2, use_bias=False, name=name)(x)
            x = jnp.tanh(BatchNorm(name=f"{name}.bn")(x, train=train))
        return nn.Dense(self.num_classes, name="fc")(jnp.mean(x, (1, 2)))


def arrays():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (32, 8, 8, 3), np.uint8), np.arange(32) % 3


CONFIG = {
    "seed": 0, "num_epochs": 4, "batch_size": 16,
    "pipeline": {"loader": "resident"},
    "normalize": {"mean": (0.5,), "std": (0.5,)},
    "schedule": {"name": "constant", "learning_rate": 0.1},
    "optimizer": {"name": "sgd", "weight_decay": 0.1},
    "ema": {"decay": 0.9, "batch_stats": "average"},
    "log": {"tensorboard": False, "every_steps": 1},
}  # fmt: skip
GRADUAL = {"freeze_stages": 0, "unfreeze_epochs": (1, 2), "freeze_batch_norm": "frozen"}


def make_run(optimizer=None, **overrides):
    config = {**CONFIG, **overrides}
    config["optimizer"] = {**CONFIG["optimizer"], **(optimizer or {})}
    return build(config, data={"train": arrays()}, model=Net(), devices=ONE)


def batch():
    images, labels = arrays()
    return {"image": images[:16], "label": labels[:16].astype(np.int32)}


def changed(before, after):
    """The modules of the network of which a bit changed."""
    pairs = zip(
        *(traverse_util.flatten_dict(t).items() for t in (before, after)), strict=True
    )
    return {
        path[0].removesuffix(".bn")
        for (path, old), (_, new) in pairs
        if old.tobytes() != new.tobytes()
    }


@pytest.fixture(scope="module")
def phases():
    """A run, and its state before and after a step of each phase."""
    run = make_run(**GRADUAL)
    states = [jax.device_get(run.init_state())]
    for phase in run.finetuning.phases:
        state, _ = jax.jit(run.step_of(phase))(states[-1], batch())
        states.append(jax.device_get(state))
    return run, states


LEARNING = ({"fc"}, {"fc", "stage2.0"}, {"fc", "stage2.0", "stage1.0"})


def test_what_is_frozen_keeps_its_bits(phases):
    """In spite of weight decay; averages, statistics and momentum too."""
    run, states = phases
    assert [run.phase_at(step) for step in range(8)] == [0, 0, 1, 1, 2, 2, 2, 2]
    for i, modules in enumerate(LEARNING):
        before, after = states[i : i + 2]
        norms = modules - {"fc"}
        assert changed(before.params, after.params) == modules
        assert changed(before.ema_params, after.ema_params) == modules
        assert changed(before.batch_stats, after.batch_stats) == norms
        assert changed(before.ema_batch_stats, after.ema_batch_stats) == norms
        moved = {
            key
            for key, new in after.opt_state.items()
            if any(map(np.any, jax.tree.leaves(new)))
        }
        assert moved == {"0", "1", "2"} - set("12"[i:])


def test_what_is_frozen_has_no_momentum_and_costs_no_gradient(phases):
    run, (state, *_) = phases
    momentum = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    stem = 3 * 3 * 3 * 4 + 2 * 4
    assert momentum == run.cost.parameters - stem
    counts = [
        jax.jit(run.step_of(phase))
        .lower(state, batch())
        .as_text()
        .count("stablehlo.convolution")
        for phase in run.finetuning.phases
    ]
    # Three forwards; then the gradients of one kernel; of another, and of a map.
    assert counts == [3, 4, 6]


def test_frozen_norm_normalises_by_its_running_statistics():
    """The training loss is then that of an evaluation."""
    run = make_run(freeze_batch_norm="statistics")
    state, feed = jax.device_get(run.init_state()), batch()
    stats = jax.tree.map(lambda s: s + np.float32(0.3), state.batch_stats)
    state = state.replace(batch_stats=stats)
    after, metrics = jax.jit(run.train_step)(state, feed)
    logits: Any = run.model.apply(
        state.variables, run.preprocess.normalize(feed["image"])
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, feed["label"])
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    chex.assert_trees_all_equal(after.batch_stats, stats)
    assert changed(state.params, jax.device_get(after.params)) == {"stem", *LEARNING[2]}


def test_keys_left_out_change_neither_state_nor_step():
    plain = make_run()
    other = make_run(
        freeze=None,
        unfreeze_epochs=(),
        optimizer={"layer_decay": 1.0, "head_rate": None},
    )
    # As in every workdir with trainable=head that there is.
    head = make_run(trainable="head", optimizer={"layer_decay": 0.5})
    for run in (other, head):
        chex.assert_trees_all_equal_structs(plain.abstract_state, run.abstract_state)
    texts = {
        jax.jit(run.train_step).lower(run.abstract_state, batch()).as_text()
        for run in (plain, other)
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("overrides", "notes"),
    [
        ({}, []),
        (
            GRADUAL,
            [
                "frozen: 420 of 435 parameters: stem, stem.bn, stage1.0, stage1.0.bn,"
                " stage2.0, stage2.0.bn",
                "from epoch 2 on frozen: 268 of 435 parameters: stem, stem.bn,"
                " stage1.0, stage1.0.bn",
                "from epoch 3 on frozen: 116 of 435 parameters: stem, stem.bn",
                "BatchNorm: 3 to 1 of 3 by their running statistics",
            ],
        ),
        (
            {"freeze": r".*\.bn"},
            [
                "frozen: 24 of 435 parameters: parts of stem, stem.bn, parts of"
                " stage1.0, stage1.0.bn, parts of stage2.0, stage2.0.bn",
                "BatchNorm: the statistics of all 3 follow the batches",
            ],
        ),
    ],
)
def test_a_run_says_what_is_frozen(overrides, notes):
    assert list(make_run(**overrides).finetuning.notes()) == notes


@pytest.mark.full
def test_stopped_in_any_phase_it_resumes_exactly(tmp_path, monkeypatch):
    keys = {**GRADUAL, "optimizer": {"name": "adamw", "layer_decay": 0.7}}
    expected = last_params(keys, tmp_path / "whole")
    for asked in (0, 1, 2):  # at step 1, 3 and 6
        monkeypatch.setattr(loop, "Interrupt", lambda n=asked: smoke.InterruptedAt(n))
        with pytest.raises(InterruptedRun):
            last_params(keys, tmp_path / "parts")
    monkeypatch.setattr(loop, "Interrupt", lambda: smoke.InterruptedAt(10**6))
    chex.assert_trees_all_equal(last_params(keys, tmp_path / "parts"), expected)


def last_params(keys, workdir):
    """The last state of a run, trained or resumed."""
    run = make_run(**keys)
    loop.train_and_evaluate(run, workdir)
    checkpoints = Checkpoints(workdir, read_only=True)
    restored = checkpoints.restore_latest(run.abstract_state)
    assert restored is not None
    assert restored[1] == run.total_steps == 8
    return jax.device_get(restored[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"freeze": "("}, r"freeze='\(': must be a regular expression \(missing \)"),
        (
            {"freeze": "stag1"},
            r"freeze='stag1': matches the start of no parameter's name, such as \S+;"
            r" did you mean 'stage\d.0'\? choices: stem, stem.bn, stage1.0, ",
        ),
        (
            {"freeze_stages": 3},
            r"freeze_stages=3: must be a stage before the last: 0 \(stem, stem.bn\); 1"
            r" \(stage1.0, stage1.0.bn\); 2 \(stage2.0, stage2.0.bn\)$",
        ),
        ({"freeze": "."}, r"^freeze='.': nothing is left to learn; .* such as fc$"),
        (
            {"freeze": "fc", "unfreeze_epochs": (1,)},
            r"^freeze='fc': nothing is left to learn",
        ),
        (
            {"unfreeze_epochs": (1, 2), "freeze_stages": 1},
            r"unfreeze_epochs=\(1, 2\): must be at most 1 epochs, one for each stage",
        ),
        (
            {"unfreeze_epochs": (2, 2)},
            r"unfreeze_epochs=\(2, 2\): must be rising, from 1 on and below num_epochs",
        ),
        (
            {"freeze_batch_norm": "eval"},
            "freeze_batch_norm='eval': choices: frozen, statistics, all",
        ),
        (
            {"freeze_stages": 1, "trainable": "head"},
            "freeze_stages=1: must be left out with trainable='head'",
        ),
        (
            {"optimizer": {"layer_decay": 1.5}},
            r"optimizer.layer_decay=1.5: must be in \(0, 1\]",
        ),
    ],
)
def test_mistakes_are_one_line_that_names_key_value_and_choices(overrides, message):
    with pytest.raises(UserError, match=message) as refused:
        make_run(**overrides)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["resnet10", "retinanet"])
def test_stages_that_are_frozen_by_the_network_would_decay(name):
    more = {"backbone": "resnet10"} if name == "retinanet" else {}
    network = create_model(name, frozen_stages=1, **more)
    said = r"model.frozen_stages=1: must be left out: use freeze_stages"
    with pytest.raises(UserError, match=said):
        finetuning({"name": "sgd"}, network)


def test_a_network_without_batch_norm_has_none_to_freeze():
    with pytest.raises(UserError, match="freeze_batch_norm='all': must be left out"):
        finetuning({"name": "sgd"}, freeze_batch_norm="all")
