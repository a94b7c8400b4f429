"""What augmentation adds to a train step, and views to a prediction.

    python benchmarks/overheads.py --out benchmarks/results/overheads_cpu.json

For configs/cbam_resnet.py on synthetic 32-pixel images. The two sides of each ratio are
timed in turn, A B A B, after compilation; a ratio is that of the medians.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks.steps import repeated_dispatch
from configs import cbam_resnet
from jaxattn.data.augment import mix
from jaxattn.inference.predict import Predictor
from jaxattn.tasks.classification.methods import TTA, Plain
from jaxattn.training.checkpoints.trained import Trained
from jaxattn.training.records.report import versions
from jaxattn.training.run import Run, build


def main() -> None:
    """Prints both ratios and writes them as JSON."""
    args = _parse()
    config: Any = cbam_resnet.get_config()
    config.batch_size = args.batch_size
    config.num_epochs = 10**6
    config.data.name = "synthetic"
    config.data.image_size = 32
    run = build(config, devices=jax.devices()[:1])
    results = {
        "model": config.model.name,
        "batch_size": args.batch_size,
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
        "augmentation": _compare(
            {
                "train_step": repeated_dispatch(run, 1),
                "augmentation": _augmentation(run),
            },
            args.blocks,
        ),
        "eight_views": _compare(_predictions(run), args.blocks),
    }
    print(json.dumps(results, indent=1))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


def _compare(sides: dict[str, Callable[[], Any]], blocks: int) -> dict[str, Any]:
    """Times two functions in turn; the ratio is the second over the first."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for function in sides.values():
        function()  # compiles
    for _ in range(blocks):
        for name, function in sides.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    first, second = (statistics.median(values) for values in seconds.values())
    return {"seconds": seconds, "ratio": second / first}


def _augmentation(run: Run) -> Callable[[], Any]:
    """All that the step does to a batch before the network, a mixed batch."""
    n, (H, W, _) = run.options.batch_size, run.data.image_shape
    images = np.stack([run.data.train[i]["image"] for i in range(n)])

    @jax.jit
    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        drawn = run.augment.draw(key, n, H, W)
        x = run.augment.apply(images, drawn.images) / 255
        assert drawn.mix is not None
        return mix(x, x[drawn.mix.partner], drawn.mix)

    key = jax.random.key(0)
    return lambda: jax.block_until_ready(augment(key, images))


def _predictions(run: Run) -> dict[str, Callable[[], Any]]:
    trained = Trained(
        model=run.model,
        variables=jax.device_get(run.init_state().variables),
        task=run.task,
        preprocess=run.preprocess,
        class_names=run.data.class_names,
        config={},
        step=0,
    )
    predictor = Predictor(trained, batch_size=run.options.batch_size)
    images = np.stack([run.data.test[i]["image"] for i in range(256)])
    return {
        "plain": lambda: predictor.predict(images, Plain()),
        "eight_views": lambda: predictor.predict(images, TTA()),
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
