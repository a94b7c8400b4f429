"""Single blocks, forward and backward in training, in our library and in PyTorch.

    python benchmarks/blocks.py --device cpu --out benchmarks/results/blocks_cpu.json

Every block is timed in turn (`timing.py`) with PyTorch's restatement of it and with the
plain convolution, batch normalisation and ReLU of both libraries; a last row compares
the train steps of ResNet-50 with and without SCSA. Needs `pip install -e '.[torch]'`.
"""
# pyright: reportMissingImports=false

import argparse
import functools
import json
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import timing
from benchmarks.steps import Work, make_jax_side
from jaxattn import attention
from jaxattn.ops.conv import Conv
from jaxattn.ops.norm import BatchNorm

# Each with the plain convolution that it is compared with.
_BLOCKS = {
    "SCC 3x3": "conv 3x3",
    "SCC 5x5": "conv 5x5",
    "SCSA": "conv 3x3",
    "CBAM": "conv 3x3",
    "MultiKernelECA": "conv 3x3",
    "SpatialGate": "conv 3x3",
    "CompetitiveAttention": "conv 3x3",
    "AttResBlock": "conv 3x3",
    "AttentionResidualBlock": "conv 3x3",
}
_SCSA = "scsa_in_resnet50"  # the last row
_SHAPES = {"cpu": (64, 32, 32, 64), "gpu": (128, 56, 56, 64)}
_CALLS = {"cpu": 1, "gpu": 50}  # before the GPU is waited for


def main() -> None:
    """Prints a table and writes the JSON."""
    args = _parse()
    results: dict[str, Any] = {
        "environment": timing.environment(args.device),
        "shape": _SHAPES[args.device],
        "rows": [],
    }
    wanted = args.blocks_of or [*_BLOCKS, _SCSA]
    for block in [block for block in wanted if block != _SCSA]:
        row = compare(block, args.device, args.blocks, args.seconds)
        results["rows"].append(row)
        print(json.dumps(row), flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    if _SCSA in wanted:
        results[_SCSA] = compare_scsa(args.device, args.blocks)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(format_table(results))


def compare(block: str, device: str, blocks: int, seconds: float) -> dict[str, Any]:
    """Returns the timings of a block and of the plain convolution, in both libraries.

    Args:
        block: One of the table's.
        device: "cpu" or "gpu".
        blocks: Of time, for every side.
        seconds: Of a block of time.
    """
    sides = {}
    for name in (block, _BLOCKS[block]):
        sides[name] = functools.partial(_make_jax, name, device)
        for layout in ("contiguous", "channels_last"):
            make = functools.partial(_make_torch, name, device, layout)
            sides[f"{name}, PyTorch {layout}"] = make
    timings = timing.time_in_turn(sides, blocks=blocks, seconds=seconds)
    return {"block": block, "plain": _BLOCKS[block], "timings": timings}


def compare_scsa(device: str, blocks: int) -> timing.Timings:
    """Returns the timings of ResNet-50's train step with and without SCSA."""
    dtype, batch = ("bfloat16", 128) if device == "gpu" else ("float32", 16)
    sides = {
        name: functools.partial(
            make_jax_side,
            Work(name, 224, batch, num_classes=1000, dtype=dtype, device=device),
        )
        for name in ("resnet50_scsa", "resnet50")
    }
    return timing.time_in_turn(sides, blocks=blocks, seconds=3.0)


class _PlainConv(nn.Module):
    """What the blocks are compared with."""

    features: int
    size: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = Conv(self.features, self.size, padding=self.size // 2, name="conv")(x)
        return nn.relu(BatchNorm(name="bn")(y, train=train))


def _jax_block(name: str, features: int) -> nn.Module:
    kind, _, size = name.partition(" ")
    if kind == "conv":
        return _PlainConv(features, int(size[0]))
    block = getattr(attention, kind)
    if kind == "SCC":
        return block(features, int(size[0]))
    has_features = "features" in block.__dataclass_fields__
    return block(features) if has_features else block()


def _make_jax(name: str, device: str) -> timing.Side:
    shape = _SHAPES[device]
    dtype = jnp.bfloat16 if device == "gpu" else jnp.float32
    block = _jax_block(name, shape[-1])
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
    variables = jax.jit(block.init, static_argnames="train")(
        jax.random.key(0), x, train=False
    )
    params, state = variables["params"], variables.get("batch_stats", {})

    @jax.jit
    def gradients(params: Any, x: jax.Array, key: jax.Array) -> Any:
        def forward(params: Any, x: jax.Array) -> Any:
            out, _ = block.apply(
                {"params": params, "batch_stats": state},
                x,
                train=True,
                mutable=["batch_stats"],
                rngs={"forcing": key, "dropout": key},
            )  # pyright: ignore[reportGeneralTypeIssues]
            return out

        out, transposed = jax.vjp(forward, params, x)
        return out, transposed(g)

    key, calls = jax.random.key(1), _CALLS[device]

    def call() -> None:
        result = None
        for _ in range(calls):
            result = gradients(params, x, key)
        jax.block_until_ready(result)

    return timing.Side(call, calls)


def _make_torch(name: str, device: str, layout: str) -> timing.Side:
    import torch

    from benchmarks.pytorch.registry import create_torch_block

    N, H, W, C = _SHAPES[device]
    on = torch.device("cuda" if device == "gpu" else "cpu")
    torch.backends.cudnn.benchmark = True
    is_last = layout == "channels_last"
    memory = torch.channels_last if is_last else torch.contiguous_format
    block: Any = create_torch_block(name, C)
    block = block.to(on).to(memory_format=memory).train()
    x, g = (
        torch.randn(N, C, H, W, device=on).contiguous(memory_format=memory)
        for _ in range(2)
    )
    x.requires_grad_(True)
    autocast = torch.autocast(on.type, torch.bfloat16, enabled=device == "gpu")
    calls = _CALLS[device]

    def call() -> None:
        result: Any = None
        for _ in range(calls):
            with autocast:
                out = block(x)
            inputs = [x, *block.parameters()]
            result = torch.autograd.grad(out, inputs, g.to(out.dtype))
        float(result[0].flatten()[0])  # waits for the device

    return timing.Side(call, calls)


def format_table(results: dict[str, Any]) -> str:
    """Returns the rows as a Markdown table, milliseconds."""
    lines = [
        "| block | jaxattn | of the plain convolution | PyTorch | of its plain one"
        " | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        ours, plain = (
            _milliseconds(row["timings"], row[k]) for k in ("block", "plain")
        )
        theirs, their_plain = (
            _milliseconds(row["timings"], f"{row[k]}, PyTorch")
            for k in ("block", "plain")
        )
        lines.append(
            f"| {row['block']} | {_text(ours)} | {ours / plain:.2f} ({row['plain']}) |"
            f" {_text(theirs)} | {theirs / their_plain:.2f} | **{theirs / ours:.2f}** |"
        )
    if _SCSA in results:
        speeds = {k: timing.median(t) for k, t in results[_SCSA].items()}
        share = speeds["resnet50"] / speeds["resnet50_scsa"] - 1
        lines.append(f"\nSCSA adds {share:.1%} to a training step of ResNet-50.")
    return "\n".join(lines)


def _text(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"


def _milliseconds(timings: timing.Timings, prefix: str) -> float:
    """Returns the time of a side, of PyTorch's the faster layout's."""
    exact = prefix in timings
    sides = {
        n: t
        for n, t in timings.items()
        if n == prefix or (not exact and n.startswith(prefix))
    }
    name = timing.fastest(sides)
    return 1000 / timing.median(sides[name]) if name else float("nan")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    timing.add_arguments(parser, seconds=1.0)
    parser.add_argument(
        "--blocks_of", nargs="*", help=f"rows, {_SCSA} among them; all by default"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
