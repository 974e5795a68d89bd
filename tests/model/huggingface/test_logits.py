"""Logits equal to those of the transformers library, in both directions, with all weights random."""

from dataclasses import replace

import pytest
import torch

from ingot.model.huggingface.mapping.family import computing_fields
from ingot.model.huggingface.save import save
from tests.model.huggingface_models import (
    EXAMPLES,
    FAMILY_CASES,
    OURS,
    TOLERANCE,
    agree,
    auto_of,
    imported,
    made,
    opened,
    theirs,
)

TIES = {"tied": True, "untied": False}


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize(("family", "case"), FAMILY_CASES)
def test_an_imported_model_has_their_logits(family, case, tie, tmp_path):
    other = theirs(family, tie_word_embeddings=TIES[tie])
    mine = imported(other, tmp_path)
    assert agree(mine, other, family, case) <= TOLERANCE


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("family", EXAMPLES)
def test_an_exported_model_has_our_logits_and_is_complete(family, tie, tmp_path):
    mine = made(replace(OURS[family], tie_word_embeddings=TIES[tie]))
    save(mine, tmp_path / "out", token_ids={"pad": EXAMPLES[family].pad})
    other = opened(tmp_path / "out", auto_of(family))
    assert type(other).__name__ == type(theirs(family)).__name__
    for case in [case for name, case in FAMILY_CASES if name == family]:
        assert agree(mine, other, family, case) <= TOLERANCE, case


@pytest.mark.parametrize("family", EXAMPLES)
def test_settings_are_read_as_a_person_would(family, tmp_path):
    other = theirs(family, tie_word_embeddings=OURS[family].tie_word_embeddings)
    mine = imported(other, tmp_path)
    assert computing_fields(mine.config, "language", None) == computing_fields(OURS[family], "language", None)
    assert not mine.training


@pytest.mark.parametrize("family", EXAMPLES)
def test_there_and_back_changes_no_bit(family, tmp_path):
    other = theirs(family)
    save(imported(other, tmp_path / "theirs"), tmp_path / "back", token_ids={"pad": EXAMPLES[family].pad})
    back = opened(tmp_path / "back", auto_of(family)).state_dict()
    assert all(torch.equal(back[name], value) for name, value in other.state_dict().items())


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {"n_inner": 48, "activation_function": "relu"}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_pytorch_tanh"}),
        ("llama", {"num_key_value_heads": 4, "head_dim": 8, "rope_parameters": None}),
        ("qwen2", {"head_dim": 16, "max_window_layers": 0}),
        ("qwen2", {"use_sliding_window": False}),
        ("qwen3", {"attention_bias": True, "layer_types": ["sliding_attention", "full_attention"] * 2}),
        ("bert", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "type_vocab_size": 3}),
        ("roberta", {"pad_token_id": 2, "max_position_embeddings": 75, "type_vocab_size": 2}),
        ("modernbert", {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}),
        ("modernbert", {"decoder_bias": False, "local_attention": 11, "layer_types": ["sliding_attention"] * 4}),
        ("modernbert", {"hidden_activation": "silu", "classifier_activation": "silu"}),
        ("modernbert", {"layer_types": ["full_attention"] * 4}),
    ],
)
def test_unusual_settings_go_both_ways(family, changes, tmp_path):
    other = theirs(family, **changes)
    mine = imported(other, tmp_path / "theirs")
    assert agree(mine, other, family, "plain") <= TOLERANCE
    save(mine, tmp_path / "back")
    assert agree(mine, opened(tmp_path / "back", auto_of(family)), family, "plain") <= TOLERANCE
