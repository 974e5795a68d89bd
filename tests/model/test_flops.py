"""Sizes and costs against published and hand-counted ones."""

import pytest
import torch

from model.config import ModelConfig
from model.flops import flops_per_token, num_computing_parameters, num_parameters, peak_flops, summary

GPT2_124M = ModelConfig(vocab_size=50257, num_layers=12, num_heads=12, width=768, max_positions=1024)
BERT_BASE = ModelConfig(
    vocab_size=30522,
    num_layers=12,
    num_heads=12,
    width=768,
    max_positions=512,
    causal=False,
    norm_placement="post",
    norm_eps=1e-12,
    activation="gelu",
    token_types=2,
    embedding_norm=True,
    head_transform=True,
    head_bias=True,
    dropout=0.1,
    attention_dropout=0.1,
    residual_scaled_init=False,
)


def test_published_parameter_counts():
    assert num_parameters(GPT2_124M) == 124_439_808
    assert num_parameters(BERT_BASE) == 109_514_298  # uncased, with the masked-LM head and without the pooler


def test_llama_3_8b_has_its_published_size():
    config = ModelConfig(
        vocab_size=128256,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        width=4096,
        mlp_width=14336,
        max_positions=8192,
        positions="rotary",
        norm="rmsnorm",
        activation="silu",
        gated_mlp=True,
        bias=False,
        tie_head=False,
    )
    assert num_parameters(config) == 8_030_261_248


def test_a_model_and_its_configuration_have_the_same_size(build):
    for kind in ("gpt", "bert", "modern"):
        model = build(kind)
        assert num_parameters(model) == num_parameters(model.config)


def test_flops_follow_the_formula():
    blocks = 12 * (12 * 768**2 + 13 * 768) + 2 * 768  # matrices 12 D^2; biases and norms 13 D; the final norm
    assert num_computing_parameters(GPT2_124M) == blocks + 50257 * 768
    assert flops_per_token(GPT2_124M, 1024) == 6 * (blocks + 50257 * 768) + 12 * 12 * 768 * 1024
    untied = ModelConfig(**{**vars(GPT2_124M), "tie_head": False})
    assert num_computing_parameters(untied) == num_computing_parameters(GPT2_124M)
    assert num_parameters(untied) == num_parameters(GPT2_124M) + 50257 * 768


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
    assert "12 layers of width 768, 12 heads of 64" in text
    assert "on 2 key/value heads" in summary(ModelConfig(num_kv_heads=2))
