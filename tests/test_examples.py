"""The examples: own_model.py needs the base installation alone."""

import pathlib
import re
import runpy
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
EXTRAS = "tensorflow tensorflow_datasets grain clu ml_collections matplotlib PIL tqdm"


@pytest.fixture(scope="module")
def printed():
    """What own_model.py prints where the extra `train` is not installed."""
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys('{EXTRAS}'.split()));"
        f"runpy.run_path({str(EXAMPLES / 'own_model.py')!r}, run_name='__main__')"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.full
@pytest.mark.parametrize("api", ["Linen", "NNX"])
def test_loss_falls(printed, api):
    losses = re.search(rf"{api}: +loss (\S+) -> (\S+)", printed)
    assert losses is not None, printed
    first, last = map(float, losses.groups())
    assert last < first / 2


@pytest.mark.full
def test_linen_and_nnx_are_one_function(printed):
    """To rounding: weights and running statistics, both trained, are the same."""
    difference = float(printed.split()[-1])
    assert difference < 1e-5


def test_overlay_shows_the_photo_its_class_and_two_maps():
    pytest.importorskip("matplotlib")
    draw = runpy.run_path(str(EXAMPLES / "attention_overlay.py"))["draw"]
    figure = draw(str(EXAMPLES.parent / "assets" / "horses.jpg"))
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert 'predicted: "horse"' in panels[0].get_title()
    assert [len(ax.images) for ax in panels] == [1, 2, 2]
    for ax in panels[1:]:
        heat = ax.images[1].get_array()
        assert heat.max() > heat.min() >= 0
