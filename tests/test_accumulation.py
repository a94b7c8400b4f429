"""Micro-batches of a step: what they add up to."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiers import slow_from

from jaxattn.data.augment import Augment, normalize
from jaxattn.data.pipeline import StreamedLoader
from jaxattn.ops import cpu_kernels
from jaxattn.ops.conv import is_fast_in_loops
from jaxattn.ops.norm import BatchNorm
from jaxattn.tasks.classification import Classification
from jaxattn.tasks.classification.losses import cross_entropy
from jaxattn.training.devices.mesh import MeshParallel
from jaxattn.training.devices.pmap import PmapParallel
from jaxattn.training.optim import RunLength, make_optimizer
from jaxattn.training.state import Ema, create_state
from jaxattn.training.steps import make_train_step

N, SHAPE, CLASSES = 16, (8, 8, 3), 5
as_input = functools.partial(normalize, mean=(0.5,), std=(0.5,))


class Network(nn.Module):
    """A convolution and a head, with what the tests ask for between them."""

    norm: bool = False
    dropout_rate: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        # A bias before BatchNorm has a gradient of rounding alone, which Adam enlarges.
        x = nn.Conv(4, (3, 3), use_bias=not self.norm, name="conv")(x)
        if self.norm:
            x = BatchNorm(axis_name=self.axis_name, name="bn")(x, train=train)
        # Smooth: no kink that rounding could cross.
        x = jnp.mean(jnp.tanh(x), (1, 2))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(CLASSES, name="fc")(x)


def adamw():
    """The optimizer of most recipes, with the norm of its gradients clipped."""
    return make_optimizer(
        name="adamw", schedule=lambda _: 1e-2, length=RunLength(1, 9),
        clip_norm=1.0, weight_decay=1e-2,
    )  # fmt: skip


def make_state(model, optimizer):
    return create_state(model, optimizer, Ema(decay=0.5), 0, SHAPE)


def make_step(
    model, count, *, optimizer=None, augment=None, axis_name=None, unroll=False
):
    return make_train_step(
        model, Classification(label_smoothing=0.1), optimizer or adamw(),
        schedule=lambda _: 1e-2, augment=augment or Augment(), normalize=as_input,
        ema=Ema(decay=0.5), accumulate_steps=count, axis_name=axis_name, unroll=unroll,
    )  # fmt: skip


def feeds(steps, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "image": rng.integers(0, 256, (N, *SHAPE), np.uint8),
            "label": rng.integers(0, CLASSES, N).astype(np.int32),
        }
        for _ in range(steps)
    ]


def train(count, parallel, model, augment=None, steps=3):
    """The state after some steps, and their metrics."""
    step = make_step(model, count, augment=augment, axis_name=parallel.axis_name)
    dispatch = parallel.compile_train(step, StreamedLoader.fetch)
    state = parallel.replicate(jax.device_get(make_state(model, adamw())))
    metrics = []
    for feed in feeds(steps):
        state, new = dispatch(state, {}, parallel.place_stacked([feed]))
        metrics.append(jax.device_get(new))
    return jax.device_get(parallel.collect(state)), metrics


MIXED = Augment(
    flip_probability=0.5, crop_padding_px=1, mixup_probability=0.5, mixup_alpha=1.0,
    cutmix_probability=0.5, cutmix_alpha=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return train(1, MeshParallel(jax.devices()[:1]), Network(), MIXED)


@pytest.mark.parametrize(
    ("kind", "devices", "count"),
    [
        (MeshParallel, 1, 4),
        *slow_from(
            1, [(PmapParallel, 2, 4), (MeshParallel, 1, N), (MeshParallel, 4, 4)]
        ),
    ],
)
def test_without_batch_norm_micro_batches_train_as_the_whole_batch(
    whole, kind, devices, count
):
    """Augmented and mixed; the order of float32 sums alone differs."""
    state, metrics = train(count, kind(jax.devices()[:devices]), Network(), MIXED)
    expected, expected_metrics = whole
    assert state.step == 3
    chex.assert_trees_all_close(state.params, expected.params, atol=2e-6, rtol=0)
    chex.assert_trees_all_close(
        state.ema_params, expected.ema_params, atol=2e-6, rtol=0
    )
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-5)


@pytest.mark.full
# In a loop XLA rounds otherwise: a mean of -1e-5 is 2e-10 off, as its terms are.
@pytest.mark.parametrize(("unroll", "mean_atol"), [(True, 0.0), (False, 1e-9)])
def test_it_is_what_optax_accumulates(unroll, mean_atol):
    """Micro-batches one by one, with BatchNorm: gradients, statistics, weights."""
    model, count = Network(norm=True), 4
    multi = optax.MultiSteps(adamw(), count)
    state = make_state(model, adamw())
    params, stats = state.params, state.batch_stats
    opt_state = multi.init(params)

    @jax.jit
    def micro_step(params, stats, opt_state, images, labels):
        def loss_fn(params):
            logits, updated = model.apply(
                {"params": params, "batch_stats": stats}, as_input(images),
                train=True, mutable=["batch_stats"],
            )  # fmt: skip
            loss = jnp.mean(cross_entropy(logits, labels, label_smoothing=0.1))
            return loss, updated["batch_stats"]

        grads, new_stats = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = multi.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new_stats, opt_state

    step = jax.jit(make_step(model, count, unroll=unroll))
    for feed in feeds(2):
        state, _ = step(state, feed)
        for i in range(count):
            micro = feed["image"][i::count], feed["label"][i::count]
            params, stats, opt_state = micro_step(params, stats, opt_state, *micro)
    # Adam divides by the gradient's size: rounding of a small one shows.
    chex.assert_trees_all_close(state.params, params, atol=1e-5, rtol=0)
    chex.assert_trees_all_close(state.batch_stats, stats, rtol=1e-5, atol=mean_atol)


@pytest.mark.full
def test_pmap_takes_batch_statistics_of_a_micro_batch_over_all_devices():
    devices = jax.devices()
    state, _ = train(
        2, PmapParallel(devices[:4]), Network(norm=True, axis_name="data"), steps=1
    )
    # Every second image of each device's part is every second one of the batch.
    expected, _ = train(2, MeshParallel(devices[:1]), Network(norm=True), steps=1)
    chex.assert_trees_all_close(state.batch_stats, expected.batch_stats, rtol=1e-5)


def test_every_micro_batch_draws_its_own_dropout():
    """With one mask for both, two equal halves would have the gradient of one."""
    model, (feed,) = Network(dropout_rate=0.5), feeds(1)
    half = jax.tree.map(lambda leaf: leaf[: N // 2], feed)
    doubled = jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=0), half)
    state = jax.jit(lambda: make_state(model, adamw()))()
    losses = [
        float(jax.jit(make_step(model, count))(state, batch)[1]["loss"])
        for count, batch in ((1, half), (2, doubled))
    ]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_state_is_that_of_a_run_without_micro_batches():
    """So everything that is saved, and every count of steps, is as it was."""
    model, (feed,) = Network(norm=True), feeds(1)
    states = [
        jax.eval_shape(make_step(model, count), make_state(model, adamw()), feed)[0]
        for count in (1, 4)
    ]
    chex.assert_trees_all_equal_shapes_and_dtypes(*states)


def test_one_micro_batch_is_no_loop():
    model, (feed,) = Network(norm=True), feeds(1)
    texts = [
        str(jax.make_jaxpr(make_step(model, count))(make_state(model, adamw()), feed))
        for count in (1, 4)
    ]
    assert ["scan[" in text for text in texts] == [False, True]


@pytest.mark.full
def test_loop_takes_the_memory_of_one_micro_batch():
    model, (feed,) = Network(norm=True), feeds(1)
    state = make_state(model, adamw())

    def compiled(count, **kwargs):
        step = jax.jit(make_step(model, count, **kwargs))
        return step.lower(state, feed).compile()

    whole, loop = compiled(1), compiled(4)
    sizes = [c.memory_analysis().temp_size_in_bytes for c in (whole, loop)]
    assert sizes[1] < sizes[0] / 2
    copies = compiled(4, unroll=True)
    # Adam squares gradients of 1e-6, which are sums of larger terms: hence the 1e-12.
    chex.assert_trees_all_close(
        loop(state, feed), copies(state, feed), rtol=1e-5, atol=1e-12
    )
    convolutions = [str(c.as_text()).count("convolution(") for c in (loop, copies)]
    assert convolutions[1] == 4 * convolutions[0]


@pytest.mark.parametrize("kernels", [False, True])
def test_cpus_loop_over_convolutions_that_are_fast_in_loops(kernels, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "is_enabled", lambda: kernels)
    assert is_fast_in_loops(jnp.float32) == kernels
    assert not is_fast_in_loops(jnp.float16)
