"""The benchmark of starts, on processes that take no time to start."""

import pytest

from benchmarks import startup

STEPS = """
import pathlib, time
folder = pathlib.Path("{workdir}")
folder.mkdir()
time.sleep(0.3)
(folder / "metrics.jsonl").write_text('{{"step": 1, "step/loss": 2.0}}')
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("code", "least"), [(STEPS, 0.3), ("import time; time.sleep(0.2)", 0.2)]
)
def test_start_ends_at_the_first_step_or_with_the_process(code, least, tmp_path):
    passed = startup.time_start(("-c", code), tmp_path / "run", tmp_path)
    assert least < passed < 10


def test_process_that_fails_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="a reason"):
        startup.time_start(("-c", "raise SystemExit('a reason')"), tmp_path, tmp_path)


FINDS = """
import os, pathlib
folder = pathlib.Path(os.environ["XDG_CACHE_HOME"], "jaxattn")
found = sorted(p.name for p in folder.glob("*"))
with open("{log}", "a") as file: print(*found, file=file)
(folder / "xla").mkdir(parents=True, exist_ok=True)
(folder / "kernels").touch()
"""


def test_states_differ_in_what_is_cached(tmp_path):
    log = tmp_path / "log"
    passed = startup.time_starts(("-c", FINDS.format(log=log)))
    assert list(passed) == ["first", "cold", "warm"]
    assert log.read_text().splitlines() == ["", "kernels", "kernels xla"]
