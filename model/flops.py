"""How large a model is, what a token costs, and what a device could do at best."""

from __future__ import annotations

import re

import torch
from torch import nn

from model.config import ModelConfig
from model.transformer import LanguageModel

_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32

# TFLOP/s of dense (not 2:4 sparse) products, from the vendors' data sheets; fp32 is that of the plain units, without
# TF32. The words are those that must occur in the device's name; the first row that fits counts.
_DENSE_PEAKS: list[tuple[set[str], dict[torch.dtype, float]]] = [
    ({"a100"}, {_BF16: 312, _FP16: 312, _FP32: 19.5}),
    ({"h100", "pcie"}, {_BF16: 756, _FP16: 756, _FP32: 51}),
    ({"h100", "nvl"}, {_BF16: 835, _FP16: 835, _FP32: 60}),
    ({"h100"}, {_BF16: 989, _FP16: 989, _FP32: 67}),
    ({"h200", "nvl"}, {_BF16: 835, _FP16: 835, _FP32: 60}),
    ({"h200"}, {_BF16: 989, _FP16: 989, _FP32: 67}),
    ({"b200"}, {_BF16: 2250, _FP16: 2250, _FP32: 75}),
    ({"l40s"}, {_BF16: 362, _FP16: 362, _FP32: 91.6}),
    ({"a10g"}, {_BF16: 70, _FP16: 70, _FP32: 35}),
    ({"t4"}, {_FP16: 65, _FP32: 8.1}),
    ({"v100", "pcie"}, {_FP16: 112, _FP32: 14}),
    ({"v100"}, {_FP16: 125, _FP32: 15.7}),
    (
        {"mi250x"},
        {_BF16: 191.5, _FP16: 191.5, _FP32: 23.9},
    ),  # of one of the card's two dies: torch shows each as a device
    ({"mi300x"}, {_BF16: 1307, _FP16: 1307, _FP32: 163.4}),
]


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Dense peak in FLOP/s of a device, by the name that torch gives it; None if unknown or without such a unit.

    A MIG slice has a part of its card's units and is unknown, too.
    """
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    if "mig" in words:
        return None
    for needed, peaks in _DENSE_PEAKS:
        if needed <= words:
            return peaks[dtype] * 1e12 if dtype in peaks else None
    return None


def num_parameters(model: nn.Module | ModelConfig) -> int:
    """Number of parameters, a tied one counted once, of a model or of the language model that a config describes."""
    if isinstance(model, ModelConfig):
        model = _on_meta(model)
    return sum(parameter.numel() for parameter in model.parameters())


def num_computing_parameters(config: ModelConfig) -> int:
    """The N of `flops_per_token`: parameters that each token is multiplied with.

    All parameters without the token, position and token type tables (these are looked up), but with the head's
    vocabulary x width matrix counted once, tied or not, since its product is computed.
    """
    model = _on_meta(config)
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))
    head = config.vocab_size * config.width if config.tie_head else 0  # tied, it went away with the token table
    return num_parameters(model) - tables + head


def flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs of a training step per token, forward and backward: 6 N + 12 x layers x width x length.

    N is `num_computing_parameters`; the second term is attention's two products (arXiv 2204.02311, appendix B), with
    width = num_heads * head size. As is the custom, nothing is taken off for what is not computed of this: the causal
    half, documents that do not see each other, the rows without a target in masked language modelling (where the head's
    matrix is a large part of N, the figure is an upper bound). Recomputed activations are not added either.
    """
    attention = 12 * config.num_layers * config.num_heads * config.head_size * sequence_length
    return float(6 * num_computing_parameters(config) + attention)


def summary(config: ModelConfig) -> str:
    """A model on a few lines, for people."""
    kind = "causal (GPT)" if config.causal else "bidirectional (BERT)"
    heads = f"{config.num_heads} heads of {config.head_size}"
    if config.kv_heads != config.num_heads:
        heads += f" on {config.kv_heads} key/value heads"
    mlp = f"{'gated ' if config.gated_mlp else ''}{config.activation} MLP of {config.mlp_size}"
    head = f"{'tied' if config.tie_head else 'own'} head matrix"
    gflops = flops_per_token(config, config.max_positions) / 1e9
    return "\n".join(
        (
            f"{kind} transformer, {num_parameters(config):,} parameters ({num_computing_parameters(config):,} compute)",
            f"  {config.num_layers} layers of width {config.width}, {heads}, {mlp}",
            f"  {config.norm_placement}-{config.norm}, {config.positions} positions up to {config.max_positions:,}, "
            f"vocabulary {config.vocab_size:,}, {head}",
            f"  {gflops:.3g} GFLOP per token of training at length {config.max_positions:,}",
        )
    )


def _on_meta(config: ModelConfig) -> LanguageModel:
    with torch.device("meta"):
        return LanguageModel(config)
