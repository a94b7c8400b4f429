"""Trains the network of a config: `python main.py --config C --workdir W`.

Repeat the command to resume an interrupted run. Exit codes: 0 done, 1 the loss diverged
or the machine failed, 2 a mistake in the command, the config or the data, 130 and 143
stopped by SIGINT and SIGTERM after saving.
"""

import os
import re
import sys
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from jaxattn import host
from jaxattn.errors import UserError, explain, suggest

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
        _check_config_file(argv)
        return flags.FLAGS(argv)
    except UserError as error:
        _exit(error, 2)
    except (AttributeError, KeyError) as error:  # an override of an unknown key
        _exit(_unknown_key(argv) or error, 2)
    except (flags.Error, ValueError, TypeError, OSError) as error:
        # An error inside a config file comes with its traceback.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raised = [line for line in lines if re.match(r"(Type|Value)Error: ", line)]
        _exit(raised[-1].split(": ", 1)[1] if raised else " ".join(lines), 2)


def _check_config_file(argv: list[str]) -> None:
    path = _config_argument(argv)
    if path and not os.path.isfile(path.split(":")[0]):
        raise UserError(f"--config={path}: no such file")


def _unknown_key(argv: list[str]) -> str | None:
    """Names the first override whose key the config does not have."""
    config: Any = flags.FLAGS["config"].parser.parse(_config_argument(argv) or "")
    for argument in argv:
        if not (match := re.match(r"--?config\.([\w.]+)", argument)):
            continue
        node = config.to_dict()
        for key in match[1].split("."):
            keys = list(node) if isinstance(node, dict) else []
            if key not in keys:
                return f"--config.{match[1]}: no such key; {suggest(key, keys)}"
            node = node[key]
    return None


def _config_argument(argv: list[str]) -> str | None:
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument):
            return match[1] or following
    return None


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
