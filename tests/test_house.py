"""The rules of the house: who may import whom, in one direction only, and how many files a folder holds.

All rooms may import `ingot.durable_files`, `ingot.safe_files` and `ingot.packages`, which import none of them.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"launcher": {"model", "data", "parallel"}, "model": set(), "data": set(), "parallel": set()}
# Inside launcher each package imports itself and those before it; those of one line do not import each other.
LAUNCHER = [
    {"runtime"},
    {"tasks"},
    {"config"},
    {"loading"},
    {"training"},
    {"finetuning"},
    {"planning"},
    {"inference", "preparation", "checkpoints"},
]
MOST_FILES = 20


def house(root: Path = ROOT) -> dict[str, Path]:
    """The full name of each module and package of the rooms, and its file."""
    modules = {}
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            modules[".".join(("ingot", *parts)).removesuffix(".__init__")] = path
    return modules


MODULES = house()


def imports_of(path: Path, modules: Iterable[str]) -> set[str]:
    """Full names of the modules that a file imports anywhere, inside functions too.

    `from package import name` is an import of `package.name` where that is a module, and of `package` otherwise; a file
    of another room that is imported by its name in a clone (`model.x` for `ingot.model.x`) counts as well.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inside & set(modules) or {node.module}
            if not inside <= set(modules):
                names.add(node.module)
    assert not {name for name in names if name.split(".")[0] in ROOMS}, f"{path}: say ingot.{sorted(names)[0]}"
    return names


EDGES = {name: imports_of(path, MODULES) for name, path in MODULES.items()}


def room_of(name: str) -> str:
    """The room of a module, or nothing for one of a library."""
    parts = name.split(".")
    return parts[1] if parts[0] == "ingot" and len(parts) > 1 else ""


def folder_of(name: str) -> str:
    """Where a module lies: its folder, or the module itself where it stands at the top of a room."""
    path = MODULES[name]
    folder = path.parent.relative_to(ROOT)
    top = len(folder.parts) == 1
    return str(path.relative_to(ROOT)) if top else str(folder)


def circle(edges: dict[str, set[str]]) -> set[str]:
    """The nodes that no order can be given to."""
    left = {
        name: {target for target in targets if target in edges and target != name} for name, targets in edges.items()
    }
    while ready := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets for name, targets in left.items() if name not in ready}
    return set(left)


@pytest.mark.parametrize("name", MODULES)
def test_a_room_imports_no_other_room_but_the_launcher_may(name):
    others = {room_of(target) for target in EDGES[name]} & ROOMS.keys() - {room_of(name)}
    assert others <= ROOMS[room_of(name)]


@pytest.mark.parametrize("name", ["durable_files", "packages", "safe_files"])
def test_the_base_layer_imports_no_room(name):
    assert {each.split(".")[0] for each in imports_of(ROOT / f"ingot/{name}.py", MODULES)} <= sys.stdlib_module_names


def test_there_is_no_import_circle():
    assert not circle(EDGES)


def test_there_is_no_circle_of_folders():
    folders: dict[str, set[str]] = {}
    for name, targets in EDGES.items():
        inside = {folder_of(target) for target in targets if target in MODULES}
        folders.setdefault(folder_of(name), set()).update(inside)
    assert not circle(folders)


def test_the_launcher_imports_downwards_only():
    levels = {package: number for number, packages in enumerate(LAUNCHER) for package in packages}
    for name, targets in EDGES.items():
        if room_of(name) != "launcher":
            continue
        for target in {target for target in targets if room_of(target) == "launcher"}:
            mine, other = name.split(".")[2:3], target.split(".")[2:3]
            assert other, f"{name} imports the package of all commands"
            if mine and mine[0] in levels:
                below = other[0] in levels and levels[other[0]] < levels[mine[0]]
                assert below or other == mine, f"{name} imports {target}"
            else:  # a command
                assert other[0] in levels or other[0] == "_clone", f"{name} imports the command {target}"


def test_each_package_of_the_launcher_has_its_place_in_the_order():
    packages = {path.name for path in (ROOT / "launcher").iterdir() if (path / "__init__.py").is_file()}
    assert packages == set().union(*LAUNCHER)


def test_a_folder_can_be_looked_through():
    folders = [ROOT / "launcher", *{path.parent for path in MODULES.values()}]
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("import ingot.data.corpus.shards", "ingot.data.corpus.shards"),
        ("from ingot.data.corpus import shards", "ingot.data.corpus.shards"),
        ("from ingot.data.corpus.shards import Corpus", "ingot.data.corpus.shards"),
        ("def f():\n    from ingot.parallel import checkpoint", "ingot.parallel.checkpoint"),
        ("from ingot import data", "ingot.data"),
    ],
)
def test_each_form_of_an_import_is_noticed(tmp_path, statement, found):
    (tmp_path / "one.py").write_text(statement)
    assert found in imports_of(tmp_path / "one.py", MODULES)


@pytest.mark.parametrize("statement", ["from . import x", "import model.transformer", "from data.corpus import shards"])
def test_imports_that_work_in_a_clone_alone_are_refused(tmp_path, statement):
    (tmp_path / "one.py").write_text(statement)
    with pytest.raises(AssertionError):
        imports_of(tmp_path / "one.py", MODULES)


def test_data_needs_no_torch():
    modules = [name for name in MODULES if room_of(name) == "data"]
    code = f"import sys; import {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
