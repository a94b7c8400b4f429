"""The documentation: pages in Markdown, and the API from the docstrings.

sphinx-build -W docs docs/build
"""

import itertools
import pathlib
import re
import shutil
from typing import Any

import jaxattn

project = "jaxattn"
version = release = jaxattn.__version__
copyright = "the authors of jaxattn"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["build"]
highlight_language = "none"  # of the equations; other code names its own
html_theme = "furo"
html_title = "jaxattn"

autodoc_default_options = {"ignore-module-all": True, "special-members": "__call__"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "code"  # in the docstrings `this` is code, as in Markdown
myst_heading_anchors = 3
napoleon_use_ivar = True  # the attributes of a class are no entries of their own

_PACKAGE = pathlib.Path(jaxattn.__file__).parent
_MODULE = """{level} {name}

```{{eval-rst}}
.. automodule:: {name}
   :members:
```

"""


def _write_api_pages(app: Any) -> None:
    """Writes a page for every package, with all modules in it; git ignores them."""
    folder = pathlib.Path(app.srcdir, "api")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for package in sorted(path.parent for path in _PACKAGE.glob("**/__init__.py")):
        name = ".".join(package.relative_to(_PACKAGE.parent).parts)
        stems = [p.stem for p in sorted(package.glob("*.py")) if p.stem[0] != "_"]
        sections = [_MODULE.format(level="#", name=name)]
        sections += [_MODULE.format(level="##", name=f"{name}.{s}") for s in stems]
        (folder / f"{name}.md").write_text("".join(sections))


_SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:")


def _markdown_to_rst(lines: list[str]) -> list[str]:
    """Rewrites what the docstrings write as Markdown: lists, and code by its indent."""
    rewritten, in_section, in_list = [], False, False
    for before, line in itertools.pairwise(["", *lines]):
        indent = len(line) - len(line.lstrip())
        starts_list = not (in_section or in_list) and line.startswith("  - ")
        ends_list = in_list and line and not indent
        if before and (starts_list or ends_list):
            rewritten.append("")
        if line and not indent:
            in_section = line in _SECTIONS
        in_list = starts_list or (in_list and not ends_list)
        if not (in_section or in_list) and indent >= 4 and not before:
            rewritten += ["::", ""]
        rewritten.append(line[2:] if in_list else line)
    return rewritten


def _process_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    del app, what, name, obj, options
    lines[:] = _markdown_to_rst(lines)


def _process_signature(
    app: Any,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    *_: Any,
) -> tuple[str, None] | None:
    """Leaves out what Flax adds to the arguments of every module."""
    del app, what, name, obj, options
    if signature is None:
        return None
    return re.sub(r",? *parent: .*?name: str \| None = None", "", signature), None


def _skip_member(
    app: Any, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leaves out what a named tuple says of its fields."""
    del app, what, name, skip, options
    is_field = str(getattr(obj, "__doc__", "")).startswith("Alias for field number")
    return True if is_field else None


def setup(app: Any) -> None:
    """Connects the above; docstrings come here before napoleon's priority of 500."""
    app.connect("builder-inited", _write_api_pages)
    app.connect("autodoc-process-docstring", _process_docstring, priority=400)
    app.connect("autodoc-process-signature", _process_signature)
    app.connect("autodoc-skip-member", _skip_member)
