"""What Ingot uses of DeepSpeed beyond its documented interface is there, and takes the same arguments."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

from ingot.parallel import mesh as meshes
from ingot.parallel.engines import deepspeed_compat
from tests.parallel.toy import build, train
from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[3]


def test_each_private_interface_is_as_it_was():
    problems = [problem for each in deepspeed_compat.PRIVATE if (problem := each.problem())]
    assert problems == []


def attributes_of_engines() -> list[str]:
    """In a rank of its own: the attributes that real engines lack."""
    mesh, missing = meshes.start("cpu"), []
    for stage in deepspeed_compat.ATTRIBUTES:
        engine = build(f"zero-{stage}", mesh)
        missing += deepspeed_compat.missing_attributes(stage, engine.optimizer, engine.module.linear.weight)
    meshes.stop()
    return missing


@pytest.mark.distributed
def test_real_engines_have_the_attributes():
    assert run_ranks(attributes_of_engines, 1) == [[]]


def buffers_of_engines() -> list[bool]:
    """Whether this rank had a shared buffer, and whether it is still there after training."""
    os.environ["LOCAL_SIZE"] = os.environ["WORLD_SIZE"]  # from the deepspeed launcher; without it there are no buffers
    was_made, make = [], deepspeed_compat.shared_buffer

    def look(rank: int) -> Path:
        was_made.append(make(rank).exists())
        return make(rank)

    deepspeed_compat.shared_buffer = look
    engine = build("zero-1", meshes.start("cpu"))
    train(engine, 0, 2)
    meshes.stop()
    return [was_made == [True], make(int(os.environ["RANK"])).exists()]


@pytest.mark.distributed
def test_no_shared_memory_is_left_behind():
    assert run_ranks(buffers_of_engines, 2) == [[True, False]] * 2


def test_a_missing_attribute_is_named():
    missing = deepspeed_compat.missing_attributes(2, None, nn.Parameter(torch.zeros(1)))
    assert len(missing) == len(deepspeed_compat.ATTRIBUTES[2])
    assert missing[0].startswith("parameter._hp_mapping is gone at stage 2: this rank's fragment")


def test_a_marked_parameter_counts_in_the_norm_over_tensor_ranks():
    from deepspeed.runtime.utils import is_model_parallel_parameter

    parameter = nn.Parameter(torch.zeros(1))
    for is_counted in (True, False):
        deepspeed_compat.mark_tensor_parallel(parameter, is_counted)
        assert is_model_parallel_parameter(parameter) == is_counted


def test_the_minor_version_that_was_read_is_the_upper_bound():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (bound,) = [each for each in dependencies if re.match(r"deepspeed\b", each)]
    major, minor, _ = map(int, deepspeed_compat.READ_FROM.split("."))
    assert bound.endswith(f",<{major}.{minor + 1}")


def test_no_other_file_touches_what_engines_set():
    names = {name for paths in deepspeed_compat.ATTRIBUTES.values() for path in paths for name in path.split(".")[1:2]}
    pattern = re.compile(rf"\.({'|'.join(names - {'partition'})})\b")  # compat has a function partition
    files = [path for room in ("parallel", "launcher") for path in (ROOT / room).rglob("*.py")]
    found = {path.name for path in files if pattern.search(path.read_text())}
    assert found <= {"deepspeed_compat.py"}
