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
        hidden_size=True,
        norm="batchnorm",
        dropout=1.0,
        norm_eps=0.0,
        num_key_value_heads=-1,
        causal=1,
        rope_theta="x",
    )
    with pytest.raises(ValueError, match="is not consistent") as error:
        config.validate()
    message = str(error.value)
    for name in (
        "vocab_size",
        "hidden_size",
        "norm",
        "dropout",
        "norm_eps",
        "num_key_value_heads",
        "causal",
        "rope_theta",
    ):
        assert f"- {name} is" in message
    assert message.count("\n") == 8
    assert "layernorm, rmsnorm" in message


def test_all_problems_between_values_come_at_once_with_remedies():
    config = ModelConfig(hidden_size=100, num_attention_heads=8, num_key_value_heads=3)
    with pytest.raises(ValueError, match="hidden_size 100") as error:
        config.validate()
    assert "set num_attention_heads to 5 or 10, or set head_dim" in str(error.value)
    assert "set num_key_value_heads to 2 or 4" in str(error.value)


def test_rotary_needs_an_even_head():
    ModelConfig(hidden_size=12, num_attention_heads=4).validate()
    with pytest.raises(ValueError, match="head_dim 3 is odd"):
        ModelConfig(hidden_size=12, num_attention_heads=4, positions="rotary").validate()
    ModelConfig(hidden_size=12, num_attention_heads=4, positions="rotary", head_dim=8).validate()


def test_a_sliding_window_is_counted_as_in_transformers():
    assert ModelConfig(layer_pattern="L", sliding_window=8).window == 7  # a causal token is one of the 8 itself
    assert ModelConfig(layer_pattern="L", sliding_window=8, causal=False).window == 8  # on each side
    assert ModelConfig().window is None


def test_kept_layers_stay_what_they_were():
    config = ModelConfig(num_hidden_layers=6, layer_pattern="GLL", sliding_window=8, first_norm=False)
    kept = config.keep_layers([0, 2, 3])
    assert (kept.num_hidden_layers, kept.layer_pattern, kept.first_norm) == (3, "GLG", False)
    kept = config.keep_layers([3])  # which had a norm before its attention
    assert (kept.num_hidden_layers, kept.layer_pattern, kept.first_norm) == (1, "G", True)
    for wrong in ([], [6], [1, 1], [2, 0], [-1]):
        with pytest.raises(ValueError, match=r"must be increasing numbers from 0 to 5"):
            config.keep_layers(wrong)


def test_every_field_is_documented():
    for name in ModelConfig.__dataclass_fields__:
        assert f"        {name}: " in ModelConfig.__doc__


def test_the_configuration_is_read_without_torch():
    code = "import sys, model, model.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
