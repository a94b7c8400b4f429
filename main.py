"""Trains the network of a recipe: `python main.py --config C --workdir W`.

It is `jaxattn train` under its published name. Repeat the command to resume an
interrupted run. Exit codes: 0 done, 1 the loss diverged or the machine failed, 2 a
mistake in the command, the config or the data, 130 and 143 stopped by SIGINT and
SIGTERM after saving.
"""

import sys

from jaxattn.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], program="main.py"))
