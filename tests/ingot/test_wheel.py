"""The wheel, installed outside of the clone: one name on the import path, and commands that work from any folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.runs import records, write_config
from tests.ranks import free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ROOMS = ("launcher", "model", "data", "parallel")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what the wheel holds; its dependencies are those of this environment."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "installed"))
    for name in ("ingot", *ROOMS):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(wheels), str(source)]
    subprocess.run([*pip, *build], check=True)
    [wheel] = wheels.glob("ingot-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    return target


def run(installed: Path, folder: Path, *words: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def test_nothing_but_ingot_stands_on_the_import_path(installed, tmp_path):
    assert sorted(path.name for path in installed.iterdir() if path.name != "bin" and "-info" not in path.name) == [
        "ingot"
    ]
    code = f"import importlib.util as u, ingot; print(ingot.__file__, *(u.find_spec(name) for name in {ROOMS}))"
    path, *found = run(installed, tmp_path, sys.executable, "-c", code).stdout.split()
    assert Path(path).is_relative_to(installed)
    assert found == ["None"] * 4


def test_it_holds_every_package_of_the_clone(installed):
    there = {path.relative_to(installed / "ingot") for path in (installed / "ingot").rglob("*.py")}
    assert there >= {path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")}


@pytest.mark.distributed
def test_commands_train_from_any_folder(installed, corpus, tmp_path):
    config = write_config(tmp_path, corpus)
    common = ["--config", config, "--run.steps", 2, "--run.save_every", 0, "--parallel.precision", "fp32"]
    module = "ingot.launcher.pretrain"
    run(installed, tmp_path, sys.executable, installed / "bin/ingot", "pretrain", *common, "--run.name", "one")
    port = ["--master_port", free_port()]
    torchrun = [BIN / "torchrun", *port, "--nproc_per_node", 2, "-m", module]
    run(installed, tmp_path, *torchrun, *common, "--run.name", "two", "--parallel.engine", "fsdp")
    deepspeed = [BIN / "deepspeed", "--num_gpus", 2, "--master_port", free_port(), "--module", module]
    run(installed, tmp_path, *deepspeed, *common, "--run.name", "three")
    losses = [
        [record["loss"] for record in records(tmp_path / "runs" / name, "train")] for name in ("one", "two", "three")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
