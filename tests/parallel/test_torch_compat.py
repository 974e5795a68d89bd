"""What Ingot uses of torch beyond its documented interface is there, takes the same arguments, and does the same."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import torch

from ingot.parallel import torch_compat
from ingot.parallel.private_interfaces import PrivateInterface

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("interface", torch_compat.PRIVATE, ids=lambda each: f"{each.module}.{each.name}")
def test_each_private_interface_is_as_it_was(interface):
    assert interface.problem() == ""


def test_what_has_changed_is_named():
    assert "torch._gone is gone" in PrivateInterface("torch", "_gone", "for nothing").problem()
    assert "torch.nowhere.f is gone" in PrivateInterface("torch.nowhere", "f", "for nothing").problem()
    changed = PrivateInterface("torch.utils.cpp_extension", "_get_build_directory", "for builds", ("name", "folder"))
    assert re.search("has no parameter folder .*Ingot uses it so: for builds", changed.problem())


def test_an_operator_has_its_name_without_its_overload():
    assert torch_compat.operator_name(torch.ops.aten.add.Tensor) == "aten::add"
    assert torch_compat.operator_name(torch.ops.aten.mm.default) == "aten::mm"
    assert torch_compat.operator_name("something") == "something"


def test_norms_and_products():
    tensors = [torch.tensor([3.0, 4.0]), torch.tensor([[5.0], [12.0]])]
    assert [float(norm) for norm in torch_compat.norms(tensors)] == [5.0, 13.0]
    torch_compat.multiply_(tensors, torch.tensor(2.0))
    assert tensors[1].tolist() == [[10.0], [24.0]]


def test_the_version_that_was_read_is_the_upper_bound():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (bound,) = [each for each in dependencies if re.match(r"torch\b", each)]
    assert bound.endswith(f"<={torch_compat.READ_FROM}")


def private_uses(path: Path) -> set[str]:
    """Attributes with a leading underscore of torch's modules, and imports of torch's private modules, in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            parts = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            found |= {f"{node.module}.{part}" for part in parts if part.startswith("_")}
        elif isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
            root = ast.unparse(node.value)
            if root.split(".")[0] in ("torch", "dist"):
                found.add(f"{root}.{node.attr}")
    return found


def test_no_other_file_uses_private_interfaces():
    folders = [ROOT / "parallel", ROOT / "launcher"]
    files = [path for folder in folders for path in folder.rglob("*.py") if path.name != "torch_compat.py"]
    assert {str(path.relative_to(ROOT)): uses for path in files if (uses := private_uses(path))} == {}
    assert private_uses(ROOT / "parallel/torch_compat.py")
