"""Ways to run the steps over devices, by name."""

from collections.abc import Callable

import jax

from jaxattn.errors import UserError, choose
from jaxattn.training.devices.mesh import Devices, MeshParallel, Parallel
from jaxattn.training.devices.pmap import PmapParallel
from jaxattn.training.options import Options

_PARALLEL: dict[str, Callable[..., Parallel]] = {
    "jit": MeshParallel,
    "pmap": PmapParallel,
}


def make_parallel(options: Options, devices: Devices) -> Parallel:
    """Returns the way to run a run's steps over devices.

    Raises:
        UserError: If there is no such way, or they cannot share the run's batches.
    """
    choose("data_parallel", options.data_parallel, _PARALLEL)
    if options.batch_size % len(devices):
        raise UserError(
            f"batch_size={options.batch_size}: must be divisible by the"
            f" {len(devices)} devices"
        )
    per_device, count = options.batch_size // len(devices), options.accumulate_steps
    if per_device % count:
        divisors = [n for n in range(1, per_device + 1) if per_device % n == 0]
        raise UserError(
            f"accumulate_steps={count}: must divide the {per_device} images of a batch"
            f" on each device; choices: {', '.join(map(str, divisors))}"
        )
    if options.data_parallel == "pmap" and jax.process_count() > 1:
        raise UserError("data_parallel='pmap': runs in one process only; use 'jit'")
    return _PARALLEL[options.data_parallel](devices)
