"""How long a call of a trained network takes."""

import time
from typing import NamedTuple

import jax
import numpy as np

from jaxattn.inference.freezing import compile_network
from jaxattn.inference.predict import make_answer
from jaxattn.training.checkpoints.trained import Trained

_MIN_CALLS = 5


class Latency(NamedTuple):
    """What was measured at one batch size.

    Attributes:
        batch_size: Images of a call.
        calls: Calls that were timed.
        p50_ms: Median time of a call, milliseconds.
        p95_ms: Time that 95 % of the calls stayed below, milliseconds.
        images_per_s: Images of all calls over the time of all calls.
    """

    batch_size: int
    calls: int
    p50_ms: float
    p95_ms: float
    images_per_s: float


def measure_latency(
    trained: Trained,
    batch_size: int,
    *,
    seconds: float,
    dtype: str | None = None,
    fold_batch_norm: bool = True,
) -> Latency:
    """Times calls, one after the other, on the default device.

    A call is from uint8 images on the host to what the task answers (probabilities, a
    label map) on the host: transfers, normalisation, network. Compilation is done
    before.

    Args:
        trained: The network.
        batch_size: Images of a call.
        seconds: For how long to measure; at least five calls are.
        dtype: Computation dtype, "float32" or "bfloat16"; None keeps the run's.
        fold_batch_norm: As of `Predictor`.

    Raises:
        UserError: If the network cannot have the dtype.
    """
    answer = compile_network(
        make_answer(trained, dtype=dtype),
        trained.variables,
        fold_batch_norm=fold_batch_norm,
    )
    shape = (batch_size, *trained.image_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    jax.device_get(answer(images))
    times: list[float] = []
    while len(times) < _MIN_CALLS or sum(times) < seconds:
        start = time.perf_counter()
        jax.device_get(answer(images))
        times.append(time.perf_counter() - start)
    p50, p95 = 1e3 * np.quantile(times, (0.5, 0.95))
    rate = batch_size * len(times) / sum(times)
    return Latency(batch_size, len(times), float(p50), float(p95), rate)
