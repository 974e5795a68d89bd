"""The configuration: defaults hold, and all problems come in one message."""

import subprocess
import sys
from pathlib import Path

import pytest

from ingot.model.config import ModelConfig


def test_defaults_are_valid():
    config = ModelConfig()
    config.validate()
    assert (config.kv_heads, config.head_size, config.mlp_size) == (4, 64, 1024)


def test_all_problems_of_values_come_at_once():
    config = ModelConfig(
        vocab_size=0,
        width=True,
        norm="batchnorm",
        dropout=1.0,
        norm_eps=0.0,
        num_kv_heads=-1,
        causal=1,
        rotary_base="x",
    )
    with pytest.raises(ValueError, match="does not hold together") as error:
        config.validate()
    message = str(error.value)
    for name in ("vocab_size", "width", "norm", "dropout", "norm_eps", "num_kv_heads", "causal", "rotary_base"):
        assert f"- {name} is" in message
    assert message.count("\n") == 8
    assert "layernorm, rmsnorm" in message


def test_all_problems_between_values_come_at_once_with_remedies():
    config = ModelConfig(width=100, num_heads=8, num_kv_heads=3)
    with pytest.raises(ValueError, match="width 100") as error:
        config.validate()
    assert "set num_heads to 5 or 10, or set head_dim" in str(error.value)
    assert "set num_kv_heads to 2 or 4" in str(error.value)


def test_rotary_needs_an_even_head():
    ModelConfig(width=12, num_heads=4).validate()
    with pytest.raises(ValueError, match="head size 3 is odd"):
        ModelConfig(width=12, num_heads=4, positions="rotary").validate()
    ModelConfig(width=12, num_heads=4, positions="rotary", head_dim=8).validate()


def test_kept_layers_stay_what_they_were():
    config = ModelConfig(num_layers=6, layer_pattern="GLL", window=8, first_norm=False)
    kept = config.keep_layers([0, 2, 3])
    assert (kept.num_layers, kept.layer_pattern, kept.first_norm) == (3, "GLG", False)
    kept = config.keep_layers([3])  # which had a norm before its attention
    assert (kept.num_layers, kept.layer_pattern, kept.first_norm) == (1, "G", True)
    for wrong in ([], [6], [1, 1], [2, 0], [-1]):
        with pytest.raises(ValueError, match=r"are no rising numbers from 0 to 5"):
            config.keep_layers(wrong)


def test_every_field_is_documented():
    for name in ModelConfig.__dataclass_fields__:
        assert f"        {name}: " in ModelConfig.__doc__


def test_the_configuration_is_read_without_torch():
    code = "import sys, model, model.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
