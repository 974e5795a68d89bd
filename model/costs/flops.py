"""How large a model is, what a token costs, and what a device could do at best."""

from __future__ import annotations

import re

import torch
from torch import nn

from ingot.model.config import ModelConfig
from ingot.model.finetuning.task_model import TaskConfig, TaskModel
from ingot.model.transformer import LanguageModel, Transformer

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


def num_parameters(model: nn.Module | ModelConfig, task: TaskConfig | None = None) -> int:
    """Number of parameters, a tied one counted once, of a model, or of the one that a configuration describes: a
    language model, or, with a task, that task's."""
    model = _on_meta(model, task) if isinstance(model, ModelConfig) else model
    return sum(parameter.numel() for parameter in model.parameters())


def parts(model: nn.Module | ModelConfig, task: TaskConfig | None = None) -> dict[str, int]:
    """Parameters of each part of a model; together `num_parameters`. What two parts share counts for the first.

    The parts are embedding, attention, mlp, norms (of all layers each, and the final norm), head, and pair head; what a
    model lacks is left out.
    """
    model = _on_meta(model, task) if isinstance(model, ModelConfig) else model
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():  # a tied one is named once, by its first place
        part = _part_of(name)
        found[part] = found.get(part, 0) + parameter.numel()
    return found


def _part_of(name: str) -> str:
    top, *rest = name.split(".")
    if top == "blocks":
        top = rest[1]
    return "norms" if top.endswith("_norm") else top.replace("_", " ")


def num_computing_parameters(config: ModelConfig, task: TaskConfig | None = None) -> int:
    """The N of `flops_per_token`: parameters that each token is multiplied with.

    All parameters without the token, position and token type tables (these are looked up), but with the head's
    vocabulary x width matrix counted once, tied or not, since its product is computed. Without heads that read one
    token of a sequence only: those of sentence pairs and of tasks of kind "sequence", and poolers.
    """
    model = _on_meta(config, task)
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))
    tied = (
        config.vocab_size * config.hidden_size if task is None and config.tie_word_embeddings else 0
    )  # it went with the token table
    rare = num_parameters(model.pair_head) if getattr(model, "pair_head", None) is not None else 0
    if task is not None and task.kind in ("sequence", "features"):
        rare = num_parameters(model.head)
    return num_parameters(model) - tables - rare + tied


def attended_keys(config: ModelConfig, layer: int, sequence_length: int) -> int:
    """Keys that a token of a layer counts as seeing: all of the sequence, or, in a local layer, its window and itself.

    In a local layer that is what a token in the middle of a long sequence really sees, window + 1 keys when causal and
    2 * window + 1 when not. In a global layer it is the custom: the causal half is not taken off.
    """
    if not config.is_local(layer):
        return sequence_length
    return min(sequence_length, (1 if config.causal else 2) * config.window + 1)


def flops_per_token(config: ModelConfig, sequence_length: int, task: TaskConfig | None = None) -> float:
    """FLOPs of a training step per token, forward and backward: 6 N + 12 x width x (keys, summed over the layers).

    N is `num_computing_parameters`; the second term is attention's two products (arXiv 2204.02311, appendix B), with
    width = num_attention_heads * head size (grouped-query attention shares keys, not products) and keys = `attended_keys`, the
    length in a global layer. As is the custom, nothing is taken off for what is not computed of this: the causal half,
    documents that do not see each other, the rows without a target in masked language modelling (where the head's
    matrix is a large part of N, the figure is an upper bound). Recomputed activations are not added either.
    """
    keys = sum(attended_keys(config, layer, sequence_length) for layer in range(config.num_hidden_layers))
    attention = 12 * config.num_attention_heads * config.head_size * keys
    return float(6 * num_computing_parameters(config, task) + attention)


def summary(config: ModelConfig, task: TaskConfig | None = None) -> str:
    """A model on a few lines, for people, with a table of its parameters by part."""
    kind = "causal (GPT)" if config.causal else "bidirectional (BERT)"
    heads = f"{config.num_attention_heads} heads of {config.head_size}"
    if config.kv_heads != config.num_attention_heads:
        heads += f" on {config.kv_heads} key/value heads"
    mlp = f"{'gated ' if config.gated_mlp else ''}{config.activation} MLP of {config.mlp_size}"
    head = f"{'tied' if config.tie_word_embeddings else 'own'} head matrix"
    if task is not None:
        head = f"head of a {task.kind} task" + (f", {task.num_labels} labels" if task.kind != "features" else "")
    gflops = flops_per_token(config, config.max_position_embeddings, task) / 1e9
    model = _on_meta(config, task)
    total, computing = num_parameters(model), num_computing_parameters(config, task)
    lines = [
        f"{kind} transformer, {total:,} parameters ({computing:,} compute)",
        f"  {config.num_hidden_layers} layers of width {config.hidden_size}, {heads}, {mlp}",
        f"  {config.norm_placement}-{config.norm}, {config.positions} positions up to {config.max_position_embeddings:,}, "
        f"vocabulary {config.vocab_size:,}, {head}",
    ]
    num_local = sum(map(config.is_local, range(config.num_hidden_layers)))
    if num_local:
        sides = "before it" if config.causal else "on either side"
        lines.append(
            f"  layer pattern {config.layer_pattern}: {num_local} local layers, where a token sees {config.window:,} "
            f"neighbours {sides}, and {config.num_hidden_layers - num_local} global ones"
        )
    lines += [f"  {part:<10}{count:>16,}  {count / total:6.1%}" for part, count in parts(model).items()]
    lines.append(f"  {gflops:.3g} GFLOP per token of training at length {config.max_position_embeddings:,}")
    return "\n".join(lines)


def _on_meta(config: ModelConfig, task: TaskConfig | None = None) -> Transformer:
    with torch.device("meta"):
        return LanguageModel(config) if task is None else TaskModel(config, task)
