"""Sizes and costs against published and hand-counted ones."""

from dataclasses import replace

import pytest
import torch

from ingot.model.attention.masks import seen_at
from ingot.model.config import ModelConfig
from ingot.model.costs.flops import (
    attended_keys,
    computed_flops,
    computed_pairs,
    flops_per_token,
    num_computing_parameters,
    num_parameters,
    parameters_by_part,
    peak_flops,
    summary,
)
from ingot.model.finetuning.task_model import TaskConfig, TaskModel

GPT2_124M = ModelConfig(
    vocab_size=50257, num_hidden_layers=12, num_attention_heads=12, hidden_size=768, max_position_embeddings=1024
)
GPT2_XL = replace(GPT2_124M, num_hidden_layers=48, num_attention_heads=25, hidden_size=1600)
BERT_BASE = ModelConfig(
    vocab_size=30522,
    num_hidden_layers=12,
    num_attention_heads=12,
    hidden_size=768,
    max_position_embeddings=512,
    causal=False,
    norm_placement="post",
    norm_eps=1e-12,
    activation="gelu",
    type_vocab_size=2,
    embedding_norm=True,
    head_transform=True,
    head_bias=True,
    dropout=0.1,
    attention_dropout=0.1,
    residual_scaled_init=False,
)
BERT_LARGE = replace(BERT_BASE, num_hidden_layers=24, num_attention_heads=16, hidden_size=1024)
LLAMA_2_7B = ModelConfig(
    vocab_size=32000,
    num_hidden_layers=32,
    num_attention_heads=32,
    hidden_size=4096,
    intermediate_size=11008,
    max_position_embeddings=4096,
    positions="rotary",
    norm="rmsnorm",
    activation="silu",
    gated_mlp=True,
    bias=False,
    tie_word_embeddings=False,
)
LLAMA_3_8B = replace(
    LLAMA_2_7B, vocab_size=128256, num_key_value_heads=8, intermediate_size=14336, max_position_embeddings=8192
)
QWEN2_05B = replace(
    LLAMA_2_7B,
    vocab_size=151936,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    hidden_size=896,
    intermediate_size=4864,
    qkv_bias=True,
    tie_word_embeddings=True,
)
QWEN3_06B = replace(
    LLAMA_2_7B,
    vocab_size=151936,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    hidden_size=1024,
    intermediate_size=3072,
    qk_norm=True,
    tie_word_embeddings=True,
)
MODERNBERT_BASE = ModelConfig(
    vocab_size=50368,
    num_hidden_layers=22,
    num_attention_heads=12,
    hidden_size=768,
    intermediate_size=1152,
    max_position_embeddings=8192,
    causal=False,
    positions="rotary",
    layer_pattern="GLL",
    sliding_window=64,
    activation="gelu",
    gated_mlp=True,
    bias=False,
    first_norm=False,
    embedding_norm=True,
    head_transform=True,
    head_bias=True,
)
MODERNBERT_LARGE = replace(
    MODERNBERT_BASE, num_hidden_layers=28, num_attention_heads=16, hidden_size=1024, intermediate_size=2624
)

# Sizes under which they were published, and what `transformers` needs to build the same.
RELEASED = {
    "gpt2": (GPT2_124M, 124_439_808, "GPT2LMHeadModel", {}),
    "gpt2-xl": (GPT2_XL, 1_557_611_200, "GPT2LMHeadModel", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "bert-base": (BERT_BASE, 109_514_298, "BertForMaskedLM", {}),  # uncased, without the pooler
    "bert-large": (
        BERT_LARGE,
        335_174_458,
        "BertForMaskedLM",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
    "llama-2-7b": (LLAMA_2_7B, 6_738_415_616, "LlamaForCausalLM", {}),
    "llama-3-8b": (
        LLAMA_3_8B,
        8_030_261_248,
        "LlamaForCausalLM",
        {"vocab_size": 128256, "num_key_value_heads": 8, "intermediate_size": 14336},
    ),
    "qwen2-0.5b": (
        QWEN2_05B,
        494_032_768,
        "Qwen2ForCausalLM",
        {
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-0.6b": (
        QWEN3_06B,
        596_049_920,
        "Qwen3ForCausalLM",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
            "tie_word_embeddings": True,
        },
    ),
    "modernbert-base": (MODERNBERT_BASE, 149_655_232, "ModernBertForMaskedLM", {}),
    "modernbert-large": (
        MODERNBERT_LARGE,
        395_881_664,
        "ModernBertForMaskedLM",
        {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 2624},
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_have_their_size(name):
    transformers = pytest.importorskip("transformers")
    ours, published, kind, settings = RELEASED[name]
    kind = getattr(transformers, kind)
    with torch.device("meta"):
        theirs = kind(kind.config_class(**settings))
    assert num_parameters(ours) == num_parameters(theirs) == published
    assert sum(parameters_by_part(ours).values()) == published


def test_a_model_and_its_configuration_have_the_same_size(build):
    for kind in ("gpt", "bert", "modern"):
        model = build(kind)
        assert num_parameters(model) == num_parameters(model.config)


def test_flops_follow_the_formula():
    blocks = 12 * (12 * 768**2 + 13 * 768) + 2 * 768  # matrices 12 D^2; biases and norms 13 D; the final norm
    assert num_computing_parameters(GPT2_124M) == blocks + 50257 * 768
    assert flops_per_token(GPT2_124M, 1024) == 6 * (blocks + 50257 * 768) + 12 * 12 * 768 * 1024
    untied = replace(GPT2_124M, tie_word_embeddings=False)
    assert num_computing_parameters(untied) == num_computing_parameters(GPT2_124M)
    assert num_parameters(untied) == num_parameters(GPT2_124M) + 50257 * 768


def test_flops_of_shared_keys_and_gated_mlps_follow_from_their_matrices():
    block = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    assert num_computing_parameters(LLAMA_3_8B) == 32 * block + 4096 + 128256 * 4096
    attention = 12 * 32 * 4096 * 8192
    assert flops_per_token(LLAMA_3_8B, 8192) == 6 * num_computing_parameters(LLAMA_3_8B) + attention


def test_local_layers_cost_their_window():
    assert [attended_keys(MODERNBERT_BASE, layer, 1024) for layer in range(4)] == [1024, 129, 129, 1024]
    assert [attended_keys(MODERNBERT_BASE, layer, 100) for layer in range(2)] == [100, 100]
    causal = replace(LLAMA_2_7B, layer_pattern="LG", sliding_window=513)
    assert [attended_keys(causal, layer, 4096) for layer in range(2)] == [513, 4096]
    saved = flops_per_token(LLAMA_2_7B, 4096) - flops_per_token(causal, 4096)
    assert saved == 12 * 4096 * 16 * (4096 - 513)
    assert flops_per_token(LLAMA_2_7B, 513) == flops_per_token(causal, 513)
    keys = 8 * 1024 + 14 * 129  # of 22 layers the first of each three is global
    expected = 6 * num_computing_parameters(MODERNBERT_BASE) + 12 * 768 * keys
    assert flops_per_token(MODERNBERT_BASE, 1024) == expected


def test_counted_products_agree(build, tokens, monkeypatch):
    """Two FLOPs for each multiplication of the forward, counted by torch; backward costs twice as much."""
    from torch.utils.flop_counter import FlopCounterMode

    def attention(q_BTHE, k_BSKE, v_BSKE, *_):
        k_BHSE, v_BHSE = (x.transpose(1, 2).repeat_interleave(2, 1) for x in (k_BSKE, v_BSKE))
        return (q_BTHE.transpose(1, 2) @ k_BHSE.mT @ v_BHSE).transpose(1, 2)

    monkeypatch.setattr("ingot.model.transformer.attention", attention)
    model = build("modern", tie_word_embeddings=False, head_dim=16)
    with FlopCounterMode(display=False) as counter:
        model(tokens(2, 48))
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)  # norms, which are no matrix products
    assert counter.get_total_flops() * 3 / 96 == flops_per_token(model.config, 48) - 6 * vectors


def test_task_heads_count_where_they_work():
    body = num_computing_parameters(MODERNBERT_BASE, TaskConfig(kind="features"))
    token = TaskConfig(kind="token", num_labels=9, layer="transform")
    head = 768 * 768 + 768 + 9 * 768 + 9
    assert num_computing_parameters(MODERNBERT_BASE, token) == body + head
    assert num_computing_parameters(MODERNBERT_BASE, replace(token, kind="sequence")) == body
    for task in (token, replace(token, kind="sequence"), replace(token, kind="features")):
        with torch.device("meta"):
            model = TaskModel(MODERNBERT_BASE, task)
        assert num_parameters(MODERNBERT_BASE, task) == num_parameters(model) == sum(parameters_by_part(model).values())
    text = summary(BERT_BASE, TaskConfig(kind="sequence", num_labels=3, layer="tanh"))
    assert "head of a sequence task, 3 labels" in text


def test_pairs_cost_nothing_for_each_token():
    pairs = replace(BERT_BASE, pair_head=True)
    assert num_parameters(pairs) == num_parameters(BERT_BASE) + 768 * 768 + 768 + 2 * 768 + 2
    assert num_computing_parameters(pairs) == num_computing_parameters(BERT_BASE)


@pytest.mark.parametrize(
    ("name", "dtype", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312),
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756),
        ("NVIDIA H200", torch.bfloat16, 989),
        ("NVIDIA B200", torch.bfloat16, 2250),
        ("NVIDIA L40S", torch.bfloat16, 362),
        ("NVIDIA A10G", torch.bfloat16, 70),
        ("Tesla T4", torch.float16, 65),
        ("Tesla V100-SXM2-16GB", torch.float32, 15.7),
        ("AMD Instinct MI250X", torch.bfloat16, 191.5),
        ("AMD Instinct MI300X", torch.bfloat16, 1307),
    ],
)
def test_known_devices_have_a_peak(name, dtype, teraflops):
    assert peak_flops(name, dtype) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    "name", ["cpu", "", "NVIDIA GeForce RTX 4090", "NVIDIA T400", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"]
)
def test_unknown_devices_have_none(name):
    assert peak_flops(name, torch.bfloat16) is None


def test_a_unit_that_the_device_lacks_has_no_peak():
    assert peak_flops("Tesla V100-SXM2-16GB", torch.bfloat16) is None


def test_the_summary_names_the_numbers():
    text = summary(GPT2_124M)
    assert "124,439,808 parameters" in text
    assert "12 layers of hidden_size 768, 12 heads of 64" in text
    assert "layer pattern" not in text
    assert "on 8 key/value heads" in summary(QWEN3_06B)
    text = summary(MODERNBERT_BASE)
    assert "layer pattern GLL: 14 local layers, where a token sees 64 neighbours on either side, and 8 global" in text


def test_the_summary_has_a_table_of_the_parts():
    table = [line.split() for line in summary(QWEN2_05B).splitlines() if line.endswith("%")]
    counts = {name: int(count.replace(",", "")) for name, count, _ in table}
    assert list(counts) == ["embedding", "norms", "attention", "mlp"]  # the head is the embedding
    assert sum(counts.values()) == 494_032_768
    assert counts["mlp"] == 24 * 3 * 896 * 4864
    assert counts["norms"] == 49 * 896
    untied = summary(replace(QWEN2_05B, tie_word_embeddings=False))
    assert "head           136,134,656" in untied


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 9, 50])
def test_computed_pairs_are_those_that_a_mask_shows(causal, window):
    more = {} if window is None else {"layer_pattern": "GL", "sliding_window": window}
    config = ModelConfig(causal=causal, num_hidden_layers=2, **more)
    lengths = [1, 2, 7, 7, 0, 20]
    for layer in range(2):
        reach = config.window if config.is_local(layer) else None
        expected = 0
        for length in lengths:
            back = torch.arange(length)[:, None] - torch.arange(length)
            expected += int(seen_at(back, causal, reach).sum())
        assert computed_pairs(config, layer, lengths) == expected


def test_computed_flops_deduct_what_is_hidden_and_nothing_else():
    config = replace(GPT2_124M)
    whole = flops_per_token(config, 1024) * 1024
    attention = 12 * 12 * 768 * 1024 * 1024
    causal = computed_flops(config, [1024])
    assert causal == whole - attention * (1 - 1025 / 2048)
    halves = computed_flops(config, [512, 512])
    assert causal - halves == 12 * 12 * 768 * 512 * 512
    full = replace(BERT_BASE)
    assert computed_flops(full, [512, 512]) == flops_per_token(full, 512) * 1024
    rows = computed_flops(full, [512, 512]) - computed_flops(full, [512, 512], num_targets=154)
    assert rows == 6 * (1024 - 154) * (30522 * 768 + 768 * 768)
    assert computed_flops(config, []) == 0
