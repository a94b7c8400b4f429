"""What a network attends to: its gates and winners, and Grad-CAM, as arrays.

Gates are what the blocks sow (the names are in `jaxattn.attention`), so a network of
any kind is drawn, one with modules of its own too.

Grad-CAM: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-based Localization", ICCV 2017, equations 1 and 2.
https://arxiv.org/abs/1610.02391
Its feature map is the one that the network marks by `jaxattn.ops.features`: the last
before its pooling.

Notation: N batch, H, W spatial, C channels, K classes.
"""

import fnmatch
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxattn.errors import UserError, require
from jaxattn.ops.features import FEATURE_MAP

MAX_BLOCKS = 16
"""Blocks that one page has room for."""

Gates = dict[str, dict[str, Any]]
Judge = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Attention(NamedTuple):
    """What a network attended to in a batch of images.

    Attributes:
        probabilities: float32 `[N, K]`; of a segmentation the share of the pixels.
        grad_cam: float32 `[N, h, w]` at the size of the last feature map, at least 0,
            of the class predicted, or another that was asked for.
        gates: By layer (its modules' names, joined by `/`) and sown name, arrays that
            broadcast against `[N, H, W, C]`, gates in float32, winners in uint8.
            In the order in which the network calls them; empty without attention.
    """

    probabilities: np.ndarray
    grad_cam: np.ndarray
    gates: Gates


class Panel(NamedTuple):
    """One picture of a layer's attention to one image.

    Attributes:
        kind: "map" over positions `[H, W]`; "bars" by channel `[C]`; or "rows"
            `[H, C]` and "columns" `[C, W]`, positions by channel, about 0.
        values: float.
        label: The layer and what is shown of it.
    """

    kind: str
    values: np.ndarray
    label: str


def judge_predicted(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the largest logit, `[N]`, and the probabilities of logits `[N, K]`."""
    return jnp.max(logits, -1), nn.softmax(logits)


def make_attend(
    module: nn.Module, judge: Judge = judge_predicted
) -> Callable[[Any, jax.Array], Attention]:
    """Returns a function `(variables, x) -> Attention`, compiled once for each shape.

    Args:
        module: A network called as `module.apply(variables, x, train=False)`, which
            returns logits and marks its last feature map.
        judge: From the logits to the score `[N]` that Grad-CAM is of, each of its own
            image alone, and to the probabilities.

    Returns:
        The function of variables and network inputs `[N, H, W, C]`. It raises a
        `UserError` if the network marks no feature map.
    """
    order: list[tuple[str, list[str]]] = []

    @jax.jit
    def compute(variables: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, Gates]:
        def apply(added: Mapping[str, jax.Array]) -> Any:
            inputs = {**variables, "perturbations": added} if added else variables
            return module.apply(inputs, x, train=False, mutable=["intermediates"])

        def score(added: Mapping[str, jax.Array]) -> tuple[jax.Array, Any]:
            logits, updated = apply(added)
            sown = updated["intermediates"]
            gates = _sown_gates(sown)
            # Remembered, for JAX sorts the keys of what it returns.
            order[:] = [(layer, list(own)) for layer, own in gates.items()]
            scores, probabilities = judge(logits)
            total = jnp.sum(scores)  # images do not see each other
            return total, (probabilities, sown[FEATURE_MAP][0], gates)

        shapes = jax.eval_shape(apply, {})[1].get("intermediates", {})
        if FEATURE_MAP not in shapes:
            raise UserError(
                f"{type(module).__name__}: marks no feature map for Grad-CAM; must call"
                " jaxattn.ops.features.mark_features before its pooling"
            )
        zeros = {FEATURE_MAP: jnp.zeros_like(shapes[FEATURE_MAP][0])}
        gradient, told = jax.grad(score, has_aux=True)(zeros)
        probabilities, feature_map, gates = told
        return probabilities, grad_cam(feature_map, gradient[FEATURE_MAP]), gates

    def attend(variables: Any, x: jax.Array) -> Attention:
        probabilities, cam, gates = jax.device_get(compute(variables, x))
        ordered = {k: {name: gates[k][name] for name in names} for k, names in order}
        return Attention(probabilities, cam, ordered)

    return attend


def sows_gates(
    module: nn.Module, variables: Any, image_shape: tuple[int, int, int]
) -> bool:
    """Returns whether a network has layers of attention; computes nothing."""
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    apply = functools.partial(module.apply, train=False, mutable=["intermediates"])
    _, updated = jax.eval_shape(apply, variables, x)
    flat = traverse_util.flatten_dict(updated.get("intermediates", {}))
    return any(_is_gate(path[-1]) for path in flat)


def _is_gate(name: str) -> bool:
    return name == "winner" or name.endswith("_gate")


def grad_cam(feature_map: jax.Array, gradient: jax.Array) -> jax.Array:
    """Returns where a feature map speaks for a class, float32 `[N, h, w]`.

        relu(sum_c mean_hw(gradient)_c * feature_map_c)

    Args:
        feature_map: `[N, h, w, C]`.
        gradient: Of the class's logit with respect to it, same shape.
    """
    weight = jnp.mean(gradient.astype(jnp.float32), (1, 2), keepdims=True)
    return nn.relu(jnp.sum(weight * feature_map.astype(jnp.float32), -1))


def select_blocks(gates: Gates, pattern: str | None = None) -> dict[str, list[str]]:
    """Chooses the layers of a page, by block (the first name of a layer's).

    Args:
        gates: Of `Attention`.
        pattern: Shell pattern of layers, such as `layer3.*`; by default the last block
            of every stage. Blocks whose maps are equal in size are one stage, or in
            channels if they gate channels alone.

    Returns:
        Layers by block, in the order of the network; empty if there are no gates.

    Raises:
        UserError: If no layer matches, or more than `MAX_BLOCKS` blocks do.
    """
    blocks: dict[str, list[str]] = {}
    for layer in gates:
        if pattern is None or fnmatch.fnmatchcase(layer, pattern):
            blocks.setdefault(_block(layer), []).append(layer)
    if pattern is None:
        last = {_stage(gates, layers): block for block, layers in blocks.items()}
        return {block: blocks[block] for block in last.values()}
    if gates:
        require("--layers", pattern, bool(blocks), f"of {_some(list(gates))}")
    wanted = f"of at most {MAX_BLOCKS} blocks, the page's height; {len(blocks)} match"
    require("--layers", pattern, len(blocks) <= MAX_BLOCKS, wanted)
    return blocks


def panels(gates: Gates, layer: str, image: int) -> Iterator[Panel]:
    """Yields the pictures of one layer's attention to one image.

    Args:
        gates: Of `Attention`.
        layer: A key of it.
        image: Index in the batch.
    """
    sown = {name: values[image] for name, values in gates[layer].items()}
    if {"height_gate", "width_gate"} <= sown.keys():
        product = sown["height_gate"] * sown["width_gate"]
        yield _panel("map", product.mean(-1), layer, "height x width gate, mean")
    for name, values in sown.items():
        label = name.replace("_", " ")
        H, W, C = values.shape
        if name == "winner":
            yield from _winner_panels(gates[layer][name], layer, image)
        elif name == "height_gate":
            yield _panel("rows", _deviation(values[:, 0]), layer, f"{label}, deviation")
        elif name == "width_gate":
            deviation = _deviation(values[0]).T
            yield _panel("columns", deviation, layer, f"{label}, deviation")
        elif (H, W) == (1, 1) and C > 1:
            yield _panel("bars", values[0, 0], layer, label)
        else:
            mean = ", mean" if C > 1 else ""
            yield _panel("map", values.mean(-1), layer, label + mean)


def _deviation(strip: np.ndarray) -> np.ndarray:
    """A gate `[L, C]` less every channel's mean, which hides the positions."""
    return strip - strip.mean(0)


def _winner_panels(winner: np.ndarray, layer: str, image: int) -> Iterator[Panel]:
    """The share of channels that each branch won, at every position."""
    for i in range(max(2, int(winner.max()) + 1)):
        share = np.mean(winner[image] == i, -1)
        side = 2 * i + 1
        text = f"{layer}\n{side}x{side} wins {share.mean():.0%}"
        spread = f"{share.min():.0%} to {share.max():.0%}"
        yield Panel("map", share, f"{text}\n{spread}")


def _panel(kind: str, values: np.ndarray, layer: str, label: str) -> Panel:
    spread = f"{values.min():.4g} to {values.max():.4g}"
    return Panel(kind, values, f"{layer}\n{label}\n{spread}")


def _sown_gates(sown: Any) -> Gates:
    """Gates and winners of all modules, in the order of their first."""
    gates: Gates = {}
    flat: dict[Any, Any] = traverse_util.flatten_dict(sown)
    for path, values in flat.items():
        name = path[-1]
        if not _is_gate(name):
            continue
        # A module that is called several times sows several.
        for number, value in enumerate(values, 1):
            layer = "/".join(path[:-1]) or "network"
            layer += f" ({number})" if len(values) > 1 else ""
            own = gates.setdefault(layer, {})
            own[name] = value if name == "winner" else value.astype(jnp.float32)
    return gates


def _block(layer: str) -> str:
    """The block of a layer: its first name, in the backbone of a network the second."""
    first, *others = layer.split("/")
    return f"{first}/{others[0]}" if first == "backbone" and others else first


def _stage(gates: Gates, layers: list[str]) -> tuple[int, ...]:
    """What the blocks of a stage have in common: height and width, or channels."""
    shapes = [gate.shape[1:] for layer in layers for gate in gates[layer].values()]
    H, W, C = np.max(shapes, 0)
    return (H, W) if (H, W) != (1, 1) else (C,)


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
