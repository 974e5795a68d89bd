"""Learned tokens: embeddings that stand in their places, or keys and values that others see of them."""

import pytest
import torch

from ingot.model.config import ModelConfig
from ingot.model.finetuning.soft_prompts import add_prompts
from ingot.model.initialization import initialize
from ingot.model.transformer import Transformer

BASE = {
    "vocab_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "max_position_embeddings": 32,
}
IDS = torch.tensor([[7, -1, -2, -3, 11, 12, 4, -1, -2, -3, 9]])
BOUNDS = torch.tensor([0, 6, 11], dtype=torch.int32)
REAL = IDS[0] >= 0


def model_of(kind: str, **more) -> Transformer:
    model = Transformer(ModelConfig(**BASE, causal=False, **more))
    initialize(model, 1)
    add_prompts(model, kind, 3)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.embedding.token.prompt_encoder.parameters():
            parameter.normal_()
    return model.eval()


@pytest.mark.parametrize("kind", ["prompt_tuning", "p_tuning"])
def test_learned_embeddings_stand_in_the_places_of_their_ids(kind):
    model = model_of(kind)
    learned = model.embedding.token.prompt_encoder(torch.arange(3))
    found = model.embedding.token(IDS)[0]
    assert torch.equal(found[1:4], learned)
    assert torch.equal(found[7:10], learned)
    assert torch.equal(found[REAL], model.embedding.token.base_layer(IDS[0][REAL]))
    model(IDS, cu_seqlens=BOUNDS).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.embedding.token.prompt_encoder.parameters())


@pytest.mark.parametrize("more", [{}, {"num_key_value_heads": 1, "positions": "rotary"}])
def test_other_tokens_see_learned_keys_and_values_in_every_layer(more):
    """A first layer worked out by hand: keys and values of the learned tokens are those of the encoder."""
    model = model_of("prefix_tuning", **more)
    features = model.config.kv_heads * model.config.head_size
    learned = model.embedding.token.prompt_encoder(torch.arange(3))
    seen = {}
    for layer, block in enumerate(model.blocks):
        for name in ("key", "value"):
            getattr(block.attention, name).register_forward_hook(
                lambda m, a, output, place=(layer, name): seen.__setitem__(place, output[0])
            )
    model(IDS, cu_seqlens=BOUNDS)
    for (layer, name), values in seen.items():
        number = 2 * layer + (name == "value")
        expected = learned[:, number * features : (number + 1) * features]
        assert torch.equal(values[1:4], expected)
        assert torch.equal(values[7:10], expected)
    inner = model.blocks[0].attention.key.base_layer
    assert not torch.allclose(seen[0, "key"][1:4], inner(torch.zeros(3, 16)))


def test_what_learned_tokens_compute_themselves_reaches_no_other_token():
    model = model_of("prefix_tuning")
    before = model(IDS, cu_seqlens=BOUNDS)[0][REAL]
    # Their positions' embeddings differ, and only they have these.
    with torch.no_grad():
        model.embedding.position.weight[1:4] += 5.0
        moved = model(IDS, cu_seqlens=BOUNDS)[0][REAL]
    torch.testing.assert_close(before, moved)


def test_parameters_of_the_model_keep_their_names_but_for_the_wrapper():
    plain = {name for name, _ in Transformer(ModelConfig(**BASE, causal=False)).named_parameters()}
    for kind in ("prompt_tuning", "p_tuning", "prefix_tuning"):
        names = [name for name, _ in model_of(kind).named_parameters()]
        assert {name.replace(".base_layer", "") for name in names if "prompt_encoder" not in name} == plain
