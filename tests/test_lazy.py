"""The faces of packages: names that are imported where they are first used."""

import ast
import importlib
import pathlib

import pytest

from jaxattn import lazy

PACKAGE = pathlib.Path(lazy.__file__).parent
FACES = [
    ".".join(path.parent.relative_to(PACKAGE.parent).parts)
    for path in sorted(PACKAGE.rglob("__init__.py"))
    if "lazy.face(" in path.read_text()
]


def read_table(package):
    """What a face says to type checkers, and its table: from names to modules."""
    module = importlib.import_module(package)
    tree = ast.parse(pathlib.Path(module.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    (block,) = (b for b in blocks if ast.unparse(b.test) == "TYPE_CHECKING")
    shown = {
        alias.asname: node.module
        for node in block.body
        for alias in node.names
        if alias.name == alias.asname
    }
    return module, shown


@pytest.mark.parametrize("package", FACES)
def test_face_has_what_type_checkers_see(package):
    module, shown = read_table(package)
    assert module.__all__ == dir(module) == sorted(shown)
    for name, home in shown.items():
        expected = getattr(importlib.import_module(home), name)
        assert getattr(module, name) is expected


@pytest.mark.parametrize("package", FACES)
def test_name_of_a_face_is_no_file_of_its_package(package):
    """Or an import of the file would put the file in the name's place."""
    module = importlib.import_module(package)
    files = {path.stem for path in pathlib.Path(module.__file__).parent.glob("*.py")}
    assert not files & set(module.__all__)


def test_unknown_name_is_an_attribute_error():
    import jaxattn.data

    with pytest.raises(AttributeError, match="has no attribute 'imgs'"):
        jaxattn.data.imgs  # noqa: B018
