"""What FSDP2 gathers together, and options for it that are refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ingot.launcher.config.parallel import Parallel
from ingot.launcher.training.build import gathered_together
from ingot.model.transformer import LanguageModel
from ingot.parallel import mesh as meshes
from ingot.parallel.engines.fsdp import Groups, Sharding, apply_fsdp
from tests.layouts import MODELS


def model_of(family: str) -> LanguageModel:
    with torch.device("meta"):
        return LanguageModel(replace(MODELS[family]))


def test_groups_of_a_model_with_and_without_a_shared_table():
    apart, tied = (gathered_together(model_of(family)) for family in ("llama", "gpt2"))
    assert [len(group) for group in apart.lists()] == [1, 1, 1, 2]  # table, two blocks, norm with head
    assert [len(group) for group in tied.lists()] == [1, 1]
    shared = nn.Linear(2, 2)
    assert Groups((), [shared], [nn.Sequential(shared)]).lists() == []


def test_soft_prompts_stay_in_the_root():
    model = model_of("llama")
    model.embedding.token = nn.Sequential(model.embedding.token)
    assert gathered_together(model).lists() == [[block] for block in model.blocks]


def test_symmetric_memory_is_refused_where_there_is_none():
    mesh = meshes.fake_mesh(2)
    model = model_of("llama")
    try:
        with pytest.raises(ValueError, match=r"parallel.symmetric_memory needs CUDA and torch 2\.13.* on cpu"):
            apply_fsdp(model, gathered_together(model), mesh, "bf16", Sharding(symmetric_memory=True))
    finally:
        meshes.stop()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"engine": "fsdp", "sync_each_micro_batch": False, "reduce_dtype": "bf16"},
            "add micro-batches up in bf16",
        ),
        ({"engine": "fsdp", "sync_each_micro_batch": False, "offload": "all"}, "keeps whole gradients on the device"),
        ({"reshard_after_forward": False}, "reshard_after_forward needs parallel.engine fsdp"),
        ({"symmetric_memory": True}, "symmetric_memory needs parallel.engine fsdp"),
    ],
)
def test_options_that_do_not_go_together(options, words):
    (problem,) = Parallel(**options).problems()
    assert words in problem
