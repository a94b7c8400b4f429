"""Optimizers, schedules, clipping and losses against PyTorch's own numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxattn import UserError
from jaxattn.data.augment import Mix, cutmix_box, mix
from jaxattn.tasks.classification import losses
from jaxattn.training.optim import (
    OPTIMIZERS,
    RunLength,
    clip_by_global_norm,
    find_length_clash,
    make_optimizer,
    make_schedule,
)
from jaxattn.training.state import update_ema
from jaxattn.training.weighing import mixed as mixed_values


@pytest.fixture
def rules(golden):
    return golden("training_rules")


def trajectory(tx, start, grads):
    """Parameters after each update, in float64 as the golden run."""
    with jax.enable_x64(True):
        params = {"p": jnp.asarray(start)}
        state, steps = tx.init(params), []
        structure = jax.tree.structure(state)
        for g in grads:
            updates, state = tx.update({"p": jnp.asarray(g)}, state, params)
            assert jax.tree.structure(state) == structure
            params = optax.apply_updates(params, updates)
            steps.append(np.asarray(params["p"]))
    return np.array(steps)


def schedule(name, rate, length, **kwargs):
    return make_schedule(name=name, learning_rate=rate, length=length, **kwargs)


def optimizer(name, schedule, length, **kwargs):
    return make_optimizer(name=name, schedule=schedule, length=length, **kwargs)


def test_clipped_nesterov_sgd_follows_torchs_trajectory(rules):
    length = RunLength(4, 3)
    tx = optimizer(
        "sgd",
        schedule("cosine", 0.1, length),
        length,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        clip_norm=1.0,
    )
    actual = trajectory(tx, rules["opt/p0"], rules["opt/grads"])
    # The learning rate is float32.
    np.testing.assert_allclose(actual, rules["opt/sgd_nesterov_clip_cosine"], rtol=1e-6)


def test_adamw_then_sgd_follows_torchs_trajectory(rules):
    length = RunLength(6, 2)
    tx = optimizer(
        "adamw_then_sgd",
        schedule("exponential", 1e-3, length, decay_rate=0.96),
        length,
        switch_fraction=0.8,
        weight_decay=1e-3,
    )
    actual = trajectory(tx, rules["opt/p0"], rules["opt/grads"])
    np.testing.assert_allclose(actual, rules["opt/adamw_then_sgd"], rtol=1e-6)


def test_adam_follows_torchs_trajectory(rules):
    length = RunLength(1, 12)
    tx = optimizer("adam", schedule("constant", 1e-3, length), length)
    actual = trajectory(tx, rules["opt/p0"], rules["opt/grads"])
    np.testing.assert_allclose(actual, rules["opt/adam"], rtol=1e-6)


@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("cosine_500", lambda n: schedule("cosine", 0.1, n)),
        ("exponential_70", lambda n: schedule("exponential", 1e-3, n, decay_rate=0.96)),
    ],
)
def test_schedule_is_torchs_epoch_by_epoch(rules, key, make):
    expected = rules[f"schedule/{key}"]
    rate = jax.jit(make(RunLength(len(expected), 7)))
    for step in (0, 6):  # the first and the last step of an epoch
        actual = [rate(7 * epoch + step) for epoch in range(len(expected))]
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-9)


def test_poly_is_mmsegmentations():
    """Of every step, down to a floor, where it stays."""
    length = RunLength(2, 5)
    keys = {"power": 0.9, "final_factor": 0.01, "update_per": "step"}
    rate = schedule("poly", 0.01, length, **keys)
    steps = np.arange(12)
    left = np.maximum(1 - steps / 10, 0)
    expected = (0.01 - 1e-4) * left**0.9 + 1e-4
    np.testing.assert_allclose([rate(i) for i in steps], expected, rtol=1e-6)


def test_step_schedules_drop_at_their_epochs():
    length = RunLength(20, 2)
    every = schedule("step", 1.0, length, epochs_per_step=6, decay_rate=0.1)
    at = schedule("multi_step", 1.0, length, milestones=(4, 12, 14), decay_rate=0.1)
    epochs = np.arange(20)
    np.testing.assert_allclose(
        [every(2 * e) for e in epochs], 0.1 ** (epochs // 6), rtol=1e-6
    )
    drops = (epochs >= 4).astype(int) + (epochs >= 12) + (epochs >= 14)
    np.testing.assert_allclose([at(2 * e + 1) for e in epochs], 0.1**drops, rtol=1e-6)


# Two epochs after its end; the falling ones go on to fall as PyTorch's do.
AFTER_THE_END = {
    ("constant",): 1.0,
    ("cosine",): 0.0,
    ("cosine", "final_factor", 0.1): 0.1,
    ("exponential", "decay_rate", 0.5): 0.5**6,
}


@pytest.mark.parametrize("update_per", ["epoch", "step"])
@pytest.mark.parametrize("warmup_epochs", [0, 1])
@pytest.mark.parametrize("case", AFTER_THE_END)
def test_no_schedule_rises_after_its_end(case, warmup_epochs, update_per):
    name, *keyword = case
    kwargs = {keyword[0]: keyword[1]} if keyword else {}
    length = RunLength(4, 10)
    rate = schedule(
        name,
        1.0,
        length,
        update_per=update_per,
        warmup_epochs=warmup_epochs,
        **kwargs,
    )
    after = np.array([rate(step) for step in range(40, 101)])
    assert (np.diff(after) <= 0).all()
    if not warmup_epochs:
        np.testing.assert_allclose(rate(60), AFTER_THE_END[case], atol=1e-7)


def test_without_a_switch_there_is_none_after_the_end():
    """Two steps after the last one are as long as AdamW's, not as the gradient."""
    length = RunLength(1, 1)
    rate = schedule("constant", 1.0, length)
    tx = optimizer("adamw_then_sgd", rate, length, switch_fraction=1.0)
    params = {"p": jnp.ones(3)}
    state, g = tx.init(params), {"p": jnp.full(3, 9.0)}
    for _ in range(3):
        updates, state = tx.update(g, state, params)
    chex.assert_trees_all_close(updates, {"p": jnp.full(3, -1.0)}, rtol=1e-4)


def test_warmup_rises_step_by_step_then_the_schedule_has_the_rest():
    rate = schedule("cosine", 1.0, RunLength(6, 4), warmup_epochs=2)
    np.testing.assert_allclose([rate(i) for i in range(8)], np.arange(1, 9) / 8)
    np.testing.assert_allclose(rate(8), 1.0)  # cosine's epoch 0 of 4
    np.testing.assert_allclose(rate(16), 0.5, rtol=1e-6)  # and its epoch 2


def test_rate_can_change_at_every_step():
    rate = schedule("cosine", 1.0, RunLength(2, 4), update_per="step")
    np.testing.assert_allclose(rate(4), 0.5, rtol=1e-6)
    assert rate(1) < rate(0)


def test_momentum_starts_afresh_at_the_switch():
    length = RunLength(2, 1)
    tx = optimizer(
        "adamw_then_sgd",
        schedule("constant", 1.0, length),
        length,
        switch_fraction=0.5,
    )
    params = {"p": jnp.ones(3)}
    state = tx.init(params)
    _, state = tx.update({"p": jnp.full(3, 9.0)}, state, params)
    updates, _ = tx.update({"p": jnp.full(3, 2.0)}, state, params)
    chex.assert_trees_all_close(updates, {"p": jnp.full(3, -2.0)})


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adamw_then_sgd"])
def test_decay_mask_spares_vectors(name):
    length = RunLength(2, 1)
    rate = schedule("constant", 0.1, length)
    tx = optimizer(name, rate, length, weight_decay=0.5, decay_mask="kernels")
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = tx.update(
        jax.tree.map(jnp.zeros_like, params), tx.init(params), params
    )
    assert np.all(updates["kernel"] < 0)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_small_gradients_are_not_clipped():
    tx = clip_by_global_norm(10.0)
    g = {"p": jnp.array([3.0, 4.0])}
    chex.assert_trees_all_equal(tx.update(g, tx.init(g))[0], g)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda n: schedule("cosin", 0.1, n),
            r"schedule.name='cosin': did you mean 'cosine'. choices: constant, cosine",
        ),
        (lambda n: schedule("cosine", -0.1, n), r"schedule.learning_rate=-0.1"),
        (lambda n: schedule("exponential", 0.1, n), r"schedule.decay_rate: required"),
        (
            lambda n: schedule("cosine", 0.1, n, final_facto=0.1),
            r"schedule.final_facto: cosine takes no such key; did you mean 'final_fac",
        ),
        (
            lambda n: optimizer("adamw", None, n, weight_decay=-1.0),
            r"optimizer.weight_decay=-1.0: must be at least 0",
        ),
        (
            lambda n: schedule("exponential", 0.1, n, decay_rate=-0.5),
            r"schedule.decay_rate=-0.5: must be above 0",
        ),
        (
            lambda n: optimizer("sgd", None, n, momentum=1.0),
            r"optimizer.momentum=1.0: must be in \[0, 1\)",
        ),
        (
            lambda n: optimizer("adamw_then_sgd", None, n, switch_fraction=1.5),
            r"optimizer.switch_fraction=1.5: must be in \[0, 1\]",
        ),
        (
            lambda n: optimizer("adam", None, n, momentum=0.9),
            r"optimizer.momentum: adam takes no such key",
        ),
    ],
)
def test_mistakes_name_key_and_value(make, message):
    with pytest.raises(UserError, match=message):
        make(RunLength(10, 10))


def test_smoothed_and_plain_losses_are_torchs(rules):
    logits, ya = jnp.asarray(rules["loss/logits"]), jnp.asarray(rules["loss/ya"])
    plain = losses.cross_entropy(logits, ya).mean()
    smooth = losses.cross_entropy(logits, ya, label_smoothing=0.1).mean()
    np.testing.assert_allclose(plain, rules["loss/plain_ce"], rtol=1e-6)
    np.testing.assert_allclose(smooth, rules["loss/smooth_ce"], rtol=1e-6)


def test_mixed_loss_and_accuracy_are_torchs(rules):
    logits, lam = jnp.asarray(rules["loss/logits"]), float(rules["loss/lam"])

    def mixed(f):
        a, b = f(jnp.asarray(rules["loss/ya"])), f(jnp.asarray(rules["loss/yb"]))
        return mixed_values(a, b, lam).mean()

    loss = mixed(lambda y: losses.cross_entropy(logits, y, label_smoothing=0.1))
    accuracy = mixed(lambda y: losses.hits(logits, y))
    np.testing.assert_allclose(loss, rules["loss/mixed_smooth_ce"], rtol=1e-6)
    np.testing.assert_allclose(accuracy, rules["loss/mixup_accuracy_b"], rtol=1e-6)


def test_cutmix_boxes_are_the_sources(rules):
    for lam, cx, cy, box, adjusted in zip(
        rules["bbox/lam"],
        rules["bbox/cx"],
        rules["bbox/cy"],
        rules["bbox/r0_c0_r1_c1"],
        rules["bbox/lam_adjusted"],
        strict=True,
    ):
        # The source's first axis, which it calls x, is rows.
        actual, share = cutmix_box(lam, jnp.array([cx, cy]), 32, 32)
        np.testing.assert_array_equal(actual, box)
        np.testing.assert_allclose(share, adjusted, rtol=1e-6)


@pytest.mark.parametrize("project", ["mix_a", "mix_b"])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_images_are_the_sources(rules, project, kind):
    x = jnp.asarray(rules["mix/input"].transpose(0, 2, 3, 1))
    lam = jnp.asarray(rules[f"{project}/lam"], jnp.float32)
    partner = jnp.asarray(rules["mix/perm"])
    if kind == "mixup":
        drawn = Mix(partner, jnp.zeros(4, jnp.int32), lam, lam)
    else:
        box, share = cutmix_box(lam, jnp.asarray(rules[f"{project}/center"]), 32, 32)
        drawn = Mix(partner, box, jnp.float32(1), share)
    expected = rules[f"{project}/{kind}"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(mix(x, x[partner], drawn), expected, atol=1e-6)
    np.testing.assert_allclose(
        drawn.label_weight, rules[f"{project}/{kind}_lam"], rtol=1e-6
    )


def test_ema_is_the_sources(rules):
    weights = rules["ema/weights"].astype(np.float32)
    shadow = jnp.asarray(weights[0])
    for new, expected in zip(weights[1:], rules["ema/shadow"], strict=True):
        shadow = update_ema(shadow, new, decay=0.999)
        np.testing.assert_allclose(shadow, expected, rtol=1e-5, atol=1e-6)


# Another length


CONSTANT, SGD = {"name": "constant", "learning_rate": 0.1}, {"name": "sgd"}
COSINE = {"name": "cosine", "learning_rate": 0.1, "update_per": "step"}
SWITCHED = {"name": "adamw_then_sgd", "switch_fraction": 0.5}


@pytest.mark.parametrize(
    ("schedule", "optimizer", "step", "clash"),
    [
        (CONSTANT, SGD, 40, None),
        ({**CONSTANT, "warmup_epochs": 2.0}, SGD, 40, None),
        ({**CONSTANT, "name": "exponential", "decay_rate": 0.9}, SGD, 40, None),
        (
            {**CONSTANT, "name": "step", "epochs_per_step": 2, "decay_rate": 0.1},
            SGD,
            40,
            None,
        ),
        (
            {**CONSTANT, "name": "multi_step", "milestones": (1,), "decay_rate": 0.1},
            SGD,
            40,
            None,
        ),
        (COSINE, SGD, 40, "schedule.name='cosine'"),
        ({**COSINE, "warmup_epochs": 2.0}, SGD, 19, None),  # all of it in the warm-up
        ({**COSINE, "warmup_epochs": 2.0}, SGD, 25, "schedule.name='cosine'"),
        (CONSTANT, SWITCHED, 40, "optimizer.switch_fraction=0.5"),
        (CONSTANT, SWITCHED, 20, None),  # the switch is still to come
        (CONSTANT, {**SWITCHED, "switch_fraction": 0.0}, 40, None),
        (CONSTANT, {**SWITCHED, "switch_fraction": 1.0}, 40, None),
        (CONSTANT, {**SWITCHED, "switch_fraction": None}, 40, "optimizer.switch_frac"),
    ],
)
def test_another_length_clashes_with_what_was_shaped_by_it(
    schedule, optimizer, step, clash
):
    lengths = {"before": RunLength(4, 10), "now": RunLength(8, 10)}
    found = find_length_clash(schedule, optimizer, step, **lengths)
    assert (found is None) == (clash is None)
    assert clash is None or found.startswith(clash)


@pytest.mark.parametrize("name", sorted({*OPTIMIZERS} - {"adamw_then_sgd"}))
def test_no_other_optimizer_knows_the_length(name):
    """Else `find_length_clash` has to know of it."""
    params, updates = {"a": jnp.ones(3)}, []
    for length in (RunLength(2, 2), RunLength(9, 2)):
        schedule = make_schedule(**CONSTANT, length=length)
        optimizer = make_optimizer(name=name, schedule=schedule, length=length)
        state = optimizer.init(params)
        for _ in range(4):
            update, state = optimizer.update({"a": jnp.arange(3.0)}, state, params)
        updates.append(update)
    chex.assert_trees_all_equal(*updates)
