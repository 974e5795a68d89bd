"""A preset makes a model of its family, whatever its size, and is a preset of nothing else."""

import pytest

from ingot.model.config import ModelConfig
from ingot.model.huggingface.families.presets import PRESETS
from ingot.model.huggingface.families.registry import FAMILIES, choose_family, export_note

SIZES = {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 3, "vocab_size": 100}


def test_each_family_has_one():
    assert list(PRESETS) == list(FAMILIES)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_expressed_by_its_family(name):
    config = ModelConfig(**SIZES, **PRESETS[name])
    config.validate()
    family = FAMILIES[name]
    assert family.differences(config, "language", None) == []
    assert choose_family(config, "language", None, None) is family
    assert {field: PRESETS[name].get(field) for field in family.implied} == family.implied
    architecture = family.heads["language"].architecture
    assert export_note(config) == f"exported, it opens in transformers as {architecture} ({name})"


def test_what_no_family_has_is_said_with_what_differs():
    note = export_note(ModelConfig(positions="rotary"))
    assert note.startswith("it cannot be exported to transformers: no supported family can express this model")
    assert "positions is 'rotary' and would be 'learned'" in note
    assert note.endswith("or set model.preset")
