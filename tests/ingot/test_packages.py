"""A package that is missing is named with the command that installs it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ingot import packages

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements):
    return {re.match(r"[A-Za-z0-9-]+", each)[0] for each in requirements}


def test_the_table_has_all_packages_of_the_project():
    extras = {name: names(each) for name, each in PROJECT["optional-dependencies"].items() if name != "test"}
    assert names(PROJECT["dependencies"]).union(*extras.values()) <= set(packages.MODULES.values())
    assert {package: extra for extra, found in extras.items() for package in found} == packages.EXTRAS


def test_commands():
    assert packages.how_to_install("datasketch") == f"{sys.executable} -m pip install '{ROOT}[dedup]'"
    assert packages.how_to_install("torch") == f"{sys.executable} -m pip install {ROOT}"
    assert packages.how_to_install("adlfs") == f"{sys.executable} -m pip install adlfs"
    assert packages.missing(ImportError("cannot import name x")) is None
    assert packages.missing(ModuleNotFoundError("no", name="ingot.nothing")) is None


# A finder that finds nothing of a package, as if it were not installed.
HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == %r:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
sys.path.insert(0, %r)
"""


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("yaml", "prepare.py --config x.yaml"),
        ("torch", "checkpoint.py list ."),
        ("docstring_parser", "ingot pretrain --help"),
    ],
)
def test_a_command_without_a_package(module, line, tmp_path):
    (tmp_path / "x.yaml").write_text("output: x")
    name, *arguments = line.split()
    code = HIDE % (module, str(ROOT if name == "ingot" else ROOT / "launcher"))
    code += f"import runpy; sys.argv = {[name, *arguments]!r}; "
    if name == "ingot":
        code += "runpy.run_module('ingot', run_name='__main__', alter_sys=True)"
    else:
        code += f"runpy.run_path({str(ROOT / 'launcher' / name)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    package = packages.MODULES[module]
    assert f"error: the package {package} is not installed for {sys.executable}: " in done.stderr
    assert f"run {sys.executable} -m pip install {ROOT}" in done.stderr
    assert "Traceback" not in done.stderr
