"""The rules of the house: who may import whom, and that a file holds one idea."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"launcher": {"model", "data", "parallel"}, "model": set(), "data": set(), "parallel": set()}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_no_other_room_but_the_launcher_may(path):
    room = path.relative_to(ROOT).parts[0]
    others = {name.split(".")[0] for name in imports_of(path)} & ROOMS.keys() - {room}
    assert others <= ROOMS[room]


def test_there_is_no_import_circle():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): imports_of(path) for path in FILES}
    edges = {name: {target for target in targets if target in modules} for name, targets in modules.items()}
    done: set[str] = set()
    while len(done) < len(edges):
        ready = {name for name, targets in edges.items() if name not in done and targets <= done}
        assert ready, f"import circle among {sorted(edges.keys() - done)}"
        done |= ready


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_holds_one_idea(path):
    assert len(path.read_text().splitlines()) <= 350


def test_data_needs_no_torch():
    modules = [f"data.{path.stem}" for path in FILES if path.parent.name == "data"]
    code = f"import sys; import {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
