"""The floors of the house: upper ones import lower ones, never the reverse."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "jaxattn"
FLOORS = [
    {"atomic", "errors", "host", "lazy"},
    {"config"},
    {"ops", "weights"},
    {"attention", "data"},
    {"models"},
    {"viz"},
    {"tasks"},
    {"training"},
    {"inference", "studies", "doctor"},
    {"cli"},
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE)


def imported_parts(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "jaxattn":
                names = [f"jaxattn.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "jaxattn" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_never_point_up(path):
    own = path.relative_to(PACKAGE).parts[0]
    for part in imported_parts(ast.parse(path.read_text())):
        assert FLOOR[part] < FLOOR[own] or part == own, f"{own} imports {part}"


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        # A program that starts itself anew has not paid for JAX twice.
        ("jaxattn, jaxattn.__main__", "jax flax numpy"),
        ("jaxattn.data, jaxattn.data.datasets, jaxattn.data.augment", "jax numpy PIL"),
        ("jaxattn.attention", "tensorflow grain clu orbax matplotlib"),
        ("jaxattn.data.datasets.registry", "PIL sklearn tensorflow_datasets grain"),
        # A machine without TensorFlow trains; Orbax, Grain and CLU wait for their use.
        ("jaxattn.training.loop", "tensorflow tensorflow_datasets grain clu orbax"),
    ],
)
def test_import_pulls_in_nothing_slow(modules, absent):
    code = f"import sys, {modules}; print(*set('{absent}'.split()) & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
