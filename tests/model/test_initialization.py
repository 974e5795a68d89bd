"""First values depend on seed and name alone, and stay what they are."""

import math

import pytest
import torch

from ingot.model.config import ModelConfig
from ingot.model.initialization import initial_values, initialize
from ingot.model.transformer import LanguageModel

CONFIG = ModelConfig(
    vocab_size=512, num_hidden_layers=2, num_attention_heads=4, hidden_size=64, max_position_embeddings=32
)


def values(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    model = LanguageModel(config)
    initialize(model, seed)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_values_do_not_depend_on_what_else_the_model_has():
    torch.manual_seed(1)
    two = values(CONFIG)
    torch.manual_seed(2)
    three = values(
        ModelConfig(**{**vars(CONFIG), "num_hidden_layers": 3, "gated_mlp": True, "residual_scaled_init": False})
    )
    for name in ("embedding.token.weight", "blocks.1.attention.query.weight", "blocks.1.mlp.up.weight"):
        assert torch.equal(two[name], three[name])
    scaled, unscaled = two["blocks.1.mlp.down.weight"], three["blocks.1.mlp.down.weight"]
    torch.testing.assert_close(scaled * 2, unscaled)  # sqrt(2 * num_hidden_layers) is 2


def test_seeds_and_names_give_different_values():
    first, second = values(CONFIG, 0), values(CONFIG, 1)
    assert not torch.equal(first["blocks.0.mlp.up.weight"], second["blocks.0.mlp.up.weight"])
    assert not torch.equal(first["blocks.0.mlp.up.weight"], first["blocks.1.mlp.up.weight"])
    assert not torch.equal(first["blocks.0.attention.key.weight"], first["blocks.0.attention.query.weight"])


def test_values_stay_what_they_were():
    got = values(CONFIG, 1234)["blocks.0.attention.query.weight"].flatten()[:4].tolist()
    assert got == pytest.approx([0.02408771, -0.016402541, 0.033063814, 0.024869004], abs=1e-7)


def test_moments_are_the_configured_ones():
    for name, value in values(CONFIG).items():
        if name.endswith("bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        else:
            scale = math.sqrt(2 * 2) if name.endswith(("output.weight", "down.weight")) else 1
            assert value.std().item() == pytest.approx(0.02 / scale, rel=0.05), name
            assert abs(value.mean().item()) < 2e-3, name


def test_a_model_from_the_meta_device_gets_the_same_values():
    with torch.device("meta"):
        model = LanguageModel(CONFIG)
    described = dict(initial_values(model, 7))
    with pytest.raises(ValueError, match="to_empty"):
        initialize(model, 7)
    model.to_empty(device="cpu")
    initialize(model, 7)
    expected = values(CONFIG, 7)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name])
        assert torch.equal(described[name], expected[name])
    assert model.head.weight is model.embedding.token.weight


def test_bf16_values_are_the_rounded_fp32_ones():
    model = LanguageModel(CONFIG).to(torch.bfloat16)
    initialize(model, 7)
    expected = values(CONFIG, 7)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, expected[name].bfloat16())


def test_every_parameter_is_set(build):
    for kind in ("gpt", "bert", "modern"):
        model = build(kind)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(math.nan)
        initialize(model, 0)
        assert not any(parameter.isnan().any() for parameter in model.parameters())
