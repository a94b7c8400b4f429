"""One block in a network of your own, in Flax Linen and in Flax NNX.

Both learn to tell in which direction the stripes of an image run. Needs jaxattn's base
installation alone: python examples/own_model.py
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.nnx import bridge

from jaxattn.attention import SCSA, AttentionResidualBlock

BATCH_SIZE, CLASSES = 32, 4
OPTIMIZER = optax.adam(3e-3)
# SCSA draws its dropout from the stream `dropout`; the residual block keeps the
# statistics of its batch normalisations in the collection `batch_stats`.
make_block = functools.partial(AttentionResidualBlock, features=16, stride=2)
make_attention = functools.partial(SCSA, window_size=4, attn_drop_ratio=0.1)


def make_batch(rng: np.random.Generator) -> tuple[jax.Array, jax.Array]:
    """Returns noisy stripes `[N, 16, 16, 3]` and the direction 0..3 of each, `[N]`."""
    labels = rng.integers(0, CLASSES, BATCH_SIZE)
    angle, phase = (
        a.reshape(-1, 1, 1) for a in (labels * np.pi / CLASSES, rng.random(BATCH_SIZE))
    )
    y, x = np.mgrid[:16, :16][:, None]
    turns = (np.cos(angle) * x + np.sin(angle) * y) / 4 + phase
    noise = rng.normal(size=(BATCH_SIZE, 16, 16, 3))
    images = np.sin(2 * np.pi * turns)[..., None] + noise
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean over the batch."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# Linen -----------------------------------------------------------------------------


class LinenNet(nn.Module):
    """A small network."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images `[N, H, W, 3]`; logits `[N, 4]`."""
        x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x))
        x = make_block(name="block")(x, train=train)
        x = make_attention(name="attention")(x, train=train)
        return nn.Dense(CLASSES, name="head")(x.mean((1, 2)))


@jax.jit
def linen_step(
    variables: Any, opt_state: Any, images: jax.Array, labels: jax.Array, key: jax.Array
) -> tuple[Any, Any, jax.Array]:
    """Trains one step; returns the new variables and state, and the loss."""

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        logits, updates = LinenNet().apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, labels), updates

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, batch_stats), grads = grad_fn(variables["params"])
    updates, opt_state = OPTIMIZER.update(grads, opt_state)
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params, **batch_stats}, opt_state, loss


def train_linen(steps: int) -> tuple[Any, list[float]]:
    """Returns the trained variables and the loss of every step."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    variables = jax.jit(LinenNet().init)(key, make_batch(rng)[0])
    opt_state = OPTIMIZER.init(variables["params"])
    losses = []
    for step in range(steps):
        batch = make_batch(rng)
        step_key = jax.random.fold_in(key, step)
        variables, opt_state, loss = linen_step(variables, opt_state, *batch, step_key)
        losses.append(float(loss))
    return variables, losses


# NNX -------------------------------------------------------------------------------


class NNXNet(nnx.Module):
    """The same network."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        # A Linen block learns its shapes from an example of its input.
        x = jnp.zeros((1, 16, 16, 8))
        self.block = bridge.ToNNX(make_block(), rngs=rngs).lazy_init(x)
        x = jnp.zeros((1, 8, 8, 16))
        self.attention = bridge.ToNNX(make_attention(), rngs=rngs).lazy_init(x)
        self.head = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images `[N, H, W, 3]`; logits `[N, 4]`."""
        x = nnx.relu(self.stem(x))
        # `mutable` writes the new statistics into the module.
        x = self.block(x, train=train, mutable=["batch_stats"] if train else None)
        x = self.attention(x, train=train)
        return self.head(x.mean((1, 2)))


@nnx.jit
def nnx_step(
    model: NNXNet, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """Trains one step, in place; returns the loss."""

    def loss_fn(model: NNXNet) -> jax.Array:
        return cross_entropy(model(images, train=True), labels)

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def train_nnx(steps: int) -> tuple[NNXNet, list[float]]:
    """Returns the trained network and the loss of every step."""
    rng = np.random.default_rng(0)
    make_model = nnx.jit(lambda: NNXNet(nnx.Rngs(params=0, dropout=1)))
    model = make_model()
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)
    return model, [
        float(nnx_step(model, optimizer, *make_batch(rng))) for _ in range(steps)
    ]


def to_linen(model: NNXNet) -> Any:
    """Returns the network's variables as Linen's, which have the same names."""
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    return {
        name: nnx.to_pure_dict(nnx.state(model, kind)) for name, kind in kinds.items()
    }


def main() -> None:
    """Trains both, and shows that they are the same function of the same weights."""
    variables, losses = train_linen(steps=60)
    print(f"Linen: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    model, losses = train_nnx(steps=60)
    print(f"NNX:   loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    images, labels = make_batch(np.random.default_rng(1))
    apply = jax.jit(LinenNet().apply)
    predicted = jnp.argmax(apply(variables, images), -1)
    print(f"Linen: {np.mean(predicted == labels):.0%} of new images right")
    nnx_logits = nnx.jit(lambda model, x: model(x))(model, images)
    difference = abs(nnx_logits - apply(to_linen(model), images)).max()
    print(f"NNX's weights in Linen: largest difference {difference}")


if __name__ == "__main__":
    main()
