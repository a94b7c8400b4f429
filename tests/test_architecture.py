"""The floors of the house: upper files import lower ones, and no file goes in a circle.

Imports inside functions and under `TYPE_CHECKING` count. A name that is taken through a
package's face counts as the file that has it.
"""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "jaxattn"
# A part may import itself and those of lower floors.
FLOORS = [
    {"lazy", "packages", "text", "web"},
    {"errors"},
    {"paths"},
    {"atomic", "host"},
    {"config"},
    {"recipes"},
    {"ops", "weights"},
    {"attention", "data"},
    {"models"},
    {"viz"},
    {"tasks"},
    {"training"},
    {"inference", "studies", "doctor"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): (
        path
    )
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports_of(tree):
    """Yields the module and the name of every import; the name is None for a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


def shown_by(module):
    """From each name that a package's `__init__` imports to the file that has it."""
    path = FILES[module]
    if path.name != "__init__.py":
        return {}
    return {
        name: source
        for source, name in imports_of(ast.parse(path.read_text()))
        if name is not None and source.startswith("jaxattn")
    }


def file_of(module, name):
    """The file that an import reads, through faces."""
    if name is not None and f"{module}.{name}" in FILES:
        return f"{module}.{name}"
    source = shown_by(module).get(name)
    return module if source is None else file_of(source, name)


def graph(files):
    """From each file to those it imports. A face is none of its names' users."""
    edges = {}
    for module, path in files.items():
        pairs = [
            (source, name)
            for source, name in imports_of(ast.parse(path.read_text()))
            if source.split(".")[0] == "jaxattn" and source in FILES
        ]
        is_face = path.name == "__init__.py"
        found = set() if is_face else {file_of(*pair) for pair in pairs}
        edges[module] = found - {module}
    return edges


EDGES = graph(FILES)


def part_of(module):
    return module.split(".")[1] if "." in module else module


def pointing_up(edges):
    return [
        f"{module} imports {other}"
        for module, others in edges.items()
        for other in others
        if part_of(module) in FLOOR and part_of(other) in FLOOR
        if part_of(module) != part_of(other)
        and FLOOR[part_of(other)] >= FLOOR[part_of(module)]
    ]


def circle(edges):
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_every_part_has_a_floor():
    parts = {part_of(module) for module in FILES} - {"jaxattn"}
    assert parts == set(FLOOR)


def test_imports_never_point_up():
    assert pointing_up(EDGES) == []


def test_no_file_imports_itself_by_way_of_others():
    assert circle(EDGES) is None


def test_an_arrow_up_and_a_circle_are_found():
    up = {"jaxattn.data.source": {"jaxattn.training.run"}}
    assert pointing_up(EDGES | up) == [
        "jaxattn.data.source imports jaxattn.training.run"
    ]
    assert circle(EDGES | up) is not None


def test_a_name_taken_through_a_face_counts_as_its_file():
    assert file_of("jaxattn.data", "read_image") == "jaxattn.data.images"
    assert file_of("jaxattn", "create_model") == "jaxattn.models.registry"
    assert file_of("jaxattn.training", "build") == "jaxattn.training.run"


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        # A program that starts itself anew has not paid for JAX twice.
        ("jaxattn, jaxattn.__main__", "jax flax numpy"),
        ("jaxattn.recipes.canet, jaxattn.config.file", "jax flax numpy tensorflow"),
        ("jaxattn.attention", "tensorflow grain clu orbax matplotlib"),
        # A machine without TensorFlow trains; Orbax, Grain and CLU wait for their use.
        ("jaxattn.training.loop", "tensorflow tensorflow_datasets grain clu orbax"),
    ],
)
def test_import_pulls_in_nothing_slow(modules, absent):
    code = f"import sys, {modules}; print(*set('{absent}'.split()) & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.full
def test_every_file_is_imported_without_what_windows_lacks():
    hidden = "fcntl resource pwd grp termios pty tty syslog"
    code = (
        "import importlib, sys; sys.modules.update(dict.fromkeys(sys.argv[1].split()));"
        "[importlib.import_module(name) for name in sys.argv[2:]]"
    )
    names = sorted({*FILES} - {"jaxattn.__main__"})
    subprocess.run([sys.executable, "-c", code, hidden, *names], check=True)
