"""Trains the network of a config: `python main.py --config C --workdir W`.

Repeat the command to resume an interrupted run. Exit codes: 0 done, 1 the loss diverged
or the machine failed, 2 a mistake in the command, the config or the data, 130 and 143
stopped by SIGINT and SIGTERM after saving.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from jaxattn.errors import DivergedError, InterruptedRun, UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, such as configs/canet.py:tiny.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run's outputs.", required=True
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Joins the processes that jax.distributed finds."
)


def main(argv: list[str]) -> None:
    """Runs the training loop and turns its known failures into one line each."""
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # Orbax tells a story at every save
    try:
        if argv[1:]:
            raise UserError(f"{' '.join(argv[1:])}: not a flag; flags are --name=value")
        if _DISTRIBUTED.value:
            import jax

            jax.distributed.initialize()
        from jaxattn.training.loop import train_and_evaluate

        train_and_evaluate(_CONFIG.value, _WORKDIR.value)
    except UserError as error:
        _exit(error, 2)
    except DivergedError as error:
        _exit(error, 1)
    except InterruptedRun as stop:
        _exit(stop, stop.exit_code)


def _exit(error: Exception, code: int) -> None:
    print(f"main.py: {error}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    app.run(main)
