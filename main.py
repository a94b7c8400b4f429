"""Trains the network of a config: `python main.py --config C --workdir W`.

Repeat the command to resume an interrupted run. Exit codes: 0 done, 1 the loss diverged
or the machine failed, 2 a mistake in the command, the config or the data, 130 and 143
stopped by SIGINT and SIGTERM after saving.
"""

import os
import sys
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from jaxattn import host
from jaxattn.config.file import parse_flags
from jaxattn.errors import UserError, explain

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, such as configs/canet.py:tiny.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run's outputs.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Joins several processes, which a cluster's launcher names."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Without a launcher: host:port of the first process."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Without a launcher: number of processes."
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Without a launcher: of this process, from 0."
)


def main(argv: list[str]) -> None:
    """Runs the training loop and turns its known failures into one line each."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells a story at every save
    try:
        if argv[1:]:
            raise UserError(f"{' '.join(argv[1:])}: not a flag; flags are --name=value")
        if _CONFIG.value is None or _WORKDIR.value is None:
            raise UserError("--config and --workdir: both are required")
        if _DISTRIBUTED.value:
            import jax

            try:
                jax.distributed.initialize(
                    _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
                )
            except (ValueError, RuntimeError) as error:
                raise UserError(f"--distributed: {error}") from error
        from jaxattn.training.loop import train_and_evaluate

        train_and_evaluate(_CONFIG.value, _WORKDIR.value)
    except (Exception, KeyboardInterrupt) as error:
        if (explained := explain(error)) is None:
            raise
        _exit(*explained)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; a mistake is one line and exit code 2."""
    try:
        return parse_flags(flags.FLAGS, argv)
    except UserError as error:
        _exit(error, 2)


def _exit(error: object, code: int) -> NoReturn:
    print(f"main.py: {error}", file=sys.stderr)
    if code == 1:
        # At a regular exit JAX waits a minute or more for processes that are gone, and
        # Grain for reads that do not return.
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    host.prepare()
    app.run(main, flags_parser=_parse_flags)
