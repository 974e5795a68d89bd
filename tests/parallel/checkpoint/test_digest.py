"""The digest, fast and as docs/checkpoint-format.md writes it."""

import re
from pathlib import Path

import pytest
import torch

from ingot.parallel.checkpoint.digest import digest
from ingot.parallel.tensor_shards import flat_shards, whole_shard


@pytest.fixture
def tensor():
    return torch.randn(13, 11, generator=torch.Generator().manual_seed(0))


def test_the_digest_does_not_depend_on_how_a_tensor_is_divided(tensor):
    expected = digest(whole_shard("w", tensor))
    for cut in (1, 40, 77, 142):
        flat = tensor.flatten()
        parts = flat_shards("w", (13, 11), 0, flat[:cut]) + flat_shards("w", (13, 11), cut, flat[cut:])
        assert sum(digest(part) for part in parts) % 2**64 == expected


def test_any_change_changes_the_digest(tensor):
    before = digest(whole_shard("w", tensor))
    swapped = tensor.clone()
    swapped[0, 0], swapped[5, 3] = tensor[5, 3], tensor[0, 0]
    negative_zero = tensor.clone()
    negative_zero[0, 0] = -0.0
    zero = tensor.clone()
    zero[0, 0] = 0.0
    others = [swapped, tensor.T.contiguous().view(13, 11), negative_zero, zero, torch.nextafter(tensor, tensor + 1)]
    digests = {digest(whole_shard("w", other)) for other in others} | {digest(whole_shard("v", tensor)), before}
    assert len(digests) == len(others) + 2


def test_the_digest_is_what_old_checkpoints_say():
    """A change of this value makes every existing checkpoint look damaged: raise the format's version with it."""
    assert f"{digest(whole_shard('w', torch.arange(6.0).view(2, 3))):016x}" == "d6a8e930b70d1cfc"
    assert digest(whole_shard("s", torch.zeros((), dtype=torch.bfloat16))) > 0


def test_the_formula_of_the_documentation_gives_the_same_digest(tensor):
    page = (Path(__file__).resolve().parents[3] / "docs/checkpoint-format.md").read_text()
    [code] = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def digest" in block]
    names: dict = {}
    exec(code, names)
    for each in (tensor, tensor[0], tensor.bfloat16(), torch.arange(24).view(2, 3, 4)):
        assert names["digest"]("model/w", each) == f"{digest(whole_shard('model/w', each)):016x}"
