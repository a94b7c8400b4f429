"""Matplotlib, whatever the user's environment says about it.

The figures here are drawn by Agg itself and never by pyplot. But Matplotlib cannot even
be imported where `MPLBACKEND` names a backend that is not installed, as in a process
that a notebook of another environment has started; and a user's `matplotlibrc` may turn
every image upside down, or ask for a LaTeX that is not there.
"""

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def import_matplotlib() -> None:
    """Imports Matplotlib if it is there and has not been imported.

    The backend of the environment stays the user's, if Matplotlib has it.
    """
    if "matplotlib" in sys.modules or importlib.util.find_spec("matplotlib") is None:
        return
    named = os.environ.pop("MPLBACKEND")
    try:
        import matplotlib
    finally:
        os.environ["MPLBACKEND"] = named
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = named


def default_look(draw: Callable[P, T]) -> Callable[P, T]:
    """Returns a function that draws by Matplotlib's own defaults."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        from matplotlib import style

        with style.context("default"):
            return draw(*args, **kwargs)

    return drawn
