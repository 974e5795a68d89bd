"""What a model is said to keep, against what autograd keeps and against the formulas of arXiv 2205.05198."""

import pytest
import torch

from ingot.model.config import ModelConfig
from ingot.model.costs.memory import activation_bytes, local_shapes, saved_by_block
from ingot.model.initialization import initialize
from ingot.model.transformer import LanguageModel

COMMON = {
    "num_hidden_layers": 3,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 500,
    "max_position_embeddings": 128,
}
LLAMA = {
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "positions": "rotary",
    "norm": "rmsnorm",
    "activation": "silu",
    "gated_mlp": True,
    "bias": False,
    "tie_word_embeddings": False,
}
BERT = {
    "causal": False,
    "norm_placement": "post",
    "type_vocab_size": 2,
    "embedding_norm": True,
    "head_transform": True,
    "head_bias": True,
}
FAMILIES = {"gpt2": {}, "gpt2 with dropout": {"dropout": 0.1}, "llama": LLAMA, "qwen3": LLAMA | {"qk_norm": True}}
FAMILIES["bert"] = BERT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_is_what_autograd_keeps(family, dtype):
    config = ModelConfig(**COMMON, **FAMILIES[family])
    model = LanguageModel(config)
    initialize(model, 0)
    model.to(dtype).train()
    ids = torch.randint(0, config.vocab_size, (8, 128))
    labels, targets = ids.clone(), 1.0
    if not config.causal:
        labels[:, 32:], targets = -100, 0.25
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.detach()  # held, so that no address comes twice
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids_BT=ids, labels_BT=labels)
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    element = dtype.itemsize
    expected = activation_bytes(
        config, tokens=8 * 128, sequence_length=128, element=element, mask=element, targets=targets
    )
    assert found == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_a_block_keeps_what_the_paper_counts(tensor):
    """Equation 4 there: s b h / t (34 + 5 a s / h) bytes a layer, with tensor and sequence parallelism."""
    config = ModelConfig(
        num_hidden_layers=2,
        hidden_size=1024,
        num_attention_heads=16,
        vocab_size=1000,
        max_position_embeddings=2048,
        dropout=0.1,
    )
    kept = saved_by_block(config, sequence_length=2048, tensor=tensor, fused_attention=False, gathered_again=True)
    assert sum(kept.values()) == pytest.approx(1024 / tensor * (34 + 5 * 16 * 2048 / 1024))


def test_recomputation_keeps_the_inputs_of_blocks_alone():
    """The paper's 2 s b h a layer, besides what one block keeps while it is computed again."""
    config = ModelConfig(
        num_hidden_layers=10, hidden_size=256, num_attention_heads=4, vocab_size=500, max_position_embeddings=128
    )
    sizes = {
        how: activation_bytes(config, tokens=1, sequence_length=128, activation_checkpointing=how) - 2 * 500 * 256
        for how in ("none", "selective", "full")
    }
    block = sum(saved_by_block(config, sequence_length=128).values())

    def size(how: str, **more: object) -> float:
        kept = activation_bytes(config, tokens=1, sequence_length=128, activation_checkpointing=how, **more)
        return kept - 2 * 500 * 256

    outside = sizes["none"] - 10 * block
    assert sizes["full"] == pytest.approx(outside + 10 * 2 * 256 + block)
    assert sizes["full"] < sizes["selective"] < sizes["none"]
    assert size("full", every=2) == pytest.approx(outside + 5 * 2 * 256 + 5 * block + block)
    assert size("full", every=11) == pytest.approx(outside + 11 * block)
    assert size("full", offload=True) == pytest.approx(outside + 2 * 2 * 256 + block)
    assert size("memory_budget", budget=0.0) == pytest.approx(sizes["full"])
    assert size("memory_budget", budget=1.0) == pytest.approx(sizes["none"] + block)


def test_a_tensor_rank_holds_its_heads_and_a_padded_part_of_the_vocabulary():
    config = ModelConfig(**{**COMMON, "vocab_size": 501}, **LLAMA)
    shapes = local_shapes(config, 4)
    assert shapes["embedding.token.weight"] == (126, 128)
    assert shapes["blocks.0.attention.query.weight"] == (32, 128)
    assert shapes["blocks.0.attention.key.weight"] == (32, 128)  # two ranks hold the same head
    assert shapes["blocks.0.attention.output.weight"] == (128, 32)
    assert shapes["blocks.2.mlp.down.weight"] == (128, 64)
    assert shapes["final_norm.weight"] == (128,)
