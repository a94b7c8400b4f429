"""The documentation: pages in Markdown, and the API from the docstrings.

sphinx-build -W docs docs/build
"""

import itertools
import pathlib
import re
from typing import Any

import jaxattn

project = "jaxattn"
version = release = jaxattn.__version__
copyright = "the authors of jaxattn"
extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["api/modules.rst", "build"]
html_theme = "furo"
html_title = "jaxattn"

# A page for every package, written at each build; git ignores them.
apidoc_modules = [
    {
        "path": str(pathlib.Path(jaxattn.__file__).parent),
        "destination": "api",
        "exclude_patterns": ["**/__main__.py"],
        "module_first": True,
        "automodule_options": {"members"},
    }
]
autodoc_default_options = {"ignore-module-all": True, "special-members": "__call__"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "code"  # in the docstrings `this` is code, as in Markdown
myst_heading_anchors = 3
napoleon_use_ivar = True  # the attributes of a class are no entries of their own

_SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:")


def _markdown_to_rst(lines: list[str]) -> list[str]:
    """Rewrites what the docstrings write as Markdown: lists, and code by its indent."""
    rewritten, in_section, in_list = [], False, False
    for before, line in itertools.pairwise(["", *lines]):
        indent = len(line) - len(line.lstrip())
        if line and not indent:
            in_section, in_list = line in _SECTIONS, False
        if not in_section and re.match(r"  - ", line):
            if not in_list and before:
                rewritten.append("")
            in_list = True
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
    """Connects the above; the first before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _process_docstring, priority=400)
    app.connect("autodoc-process-signature", _process_signature)
    app.connect("autodoc-skip-member", _skip_member)
