"""Images per second of the train step: one model, one batch size, this machine.

    python benchmarks/throughput.py --model canet_tiny --batch_size 128

Times whole dispatches of the recipe of configs/canet.py (augmentation included) on
synthetic images, in blocks, and prints the median block; compilation is told apart.
"""

import argparse
import pathlib
import statistics
import sys
import time
from typing import Any

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from configs import canet
from jaxattn import list_models
from jaxattn.training.run import Run, build


def main() -> None:
    """Prints compile time and the speed of each block."""
    args = _parse()
    config: Any = canet.get_config()
    config.model.name = args.model
    config.batch_size = args.batch_size
    config.dtype = args.dtype
    config.num_epochs = 10**6
    if args.steps_per_dispatch:
        config.steps_per_dispatch = args.steps_per_dispatch
    config.data.name = "synthetic"
    config.data.image_size = args.image_size
    run = build(config)

    blocks, compile_s = measure(run, args.blocks, args.seconds_per_block)
    median = statistics.median(blocks)
    print(
        f"{args.model} {args.image_size} px, batch {args.batch_size}, {args.dtype},"
        f" {run.parallel.num_devices} x {jax.devices()[0].device_kind},"
        f" jax {jax.__version__}: {median:,.0f} images/s"
        f" (median of {len(blocks)} blocks, {min(blocks):,.0f} to {max(blocks):,.0f}),"
        f" compiled in {compile_s:.1f} s"
    )


def measure(
    run: Run, num_blocks: int, seconds_per_block: float
) -> tuple[list[float], float]:
    """Returns images per second of each block, and seconds until the first step."""
    parallel, loader = run.parallel, run.loaders["train"]
    store = parallel.replicate(loader.store)
    dispatch = parallel.compile_train(run.train_step, loader.fetch)
    state = run.init_state()
    feeds = loader.train_feeds(run.order, 0, run.total_steps)
    steps = run.steps_per_dispatch
    chunk = parallel.place_stacked([next(feeds) for _ in range(steps)])

    start = time.perf_counter()
    state, metrics = dispatch(state, store, chunk)
    jax.block_until_ready(metrics)
    compile_s = time.perf_counter() - start

    blocks = []
    for _ in range(num_blocks):
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds_per_block:
            state, metrics = dispatch(state, store, chunk)
            jax.block_until_ready(metrics)
            count += 1
        seconds = time.perf_counter() - start
        blocks.append(count * steps * run.options.batch_size / seconds)
    return blocks, compile_s


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="canet_tiny", choices=list_models())
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=32, help="pixels")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps_per_dispatch", type=int)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--seconds_per_block", type=float, default=3.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
