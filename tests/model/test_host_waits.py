"""In a forward and backward on a GPU the host never waits for the device: shown with fake CUDA tensors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fake_cuda

pytestmark = pytest.mark.skipif(fake_cuda.why_not() is not None, reason=str(fake_cuda.why_not()))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    library = fake_cuda.build(tmp_path_factory.mktemp("fake_cuda"))
    command = [sys.executable, "-m", "tests.model.host_waits", str(library)]
    root = Path(__file__).parents[2]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("kind", ["gpt", "bert", "modernbert", "llama"])
def test_with_the_rows_of_the_targets_the_host_never_waits(found, kind):
    step = found[f"{kind} True"]
    assert (step["waits"], step["failure"], step["missing"]) == ([], None, [])
    assert "_varlen_attn" in step["names"]
    assert "_varlen_attn_backward" in step["names"]


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_next_tokens_do_not_need_the_rows(found, kind):
    step = found[f"{kind} False"]
    assert (step["waits"], step["failure"], step["missing"]) == ([], None, [])


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_masked_tokens_without_the_rows_are_searched_once(found, kind):
    assert found[f"{kind} False"]["waits"] == ["nonzero"]
