"""The documentation is built from its pages and the docstrings, without a warning."""

import pathlib
import re
import subprocess
import sys

import pytest

# Sphinx takes half a minute.
pytestmark = pytest.mark.full

DOCS = pathlib.Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    for package in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("docs")
    command = ["sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [sys.executable, "-m", *command, str(DOCS), str(out)],
        cwd=DOCS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_public_block_is_described(built):
    import jaxattn.attention

    pages = "".join(path.read_text() for path in built.glob("api/*.html"))
    for name in jaxattn.attention.__all__:
        module = getattr(jaxattn.attention, name).__module__
        assert f'id="{module}.{name}"' in pages, name


def test_docstrings_lists_are_lists_and_equations_are_code(built):
    page = (built / "api" / "jaxattn.attention.html").read_text()
    assert "<li><p>mistakes that the code meets late" in page
    assert "<pre>s_i = conv(x, centre_i(kernel))" in page.replace("<span></span>", "")


def test_home_has_the_picture_and_commands_to_copy(built):
    page = (built / "index.html").read_text()
    assert (built / "_images" / "attention_overlay.jpg").exists()
    assert "python main.py --config configs/quickstart.py" in re.sub("<.*?>", "", page)
    assert "copybutton.js" in page
