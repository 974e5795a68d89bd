"""Number of parameters of a model, FLOPs of a token, and the peak FLOP/s of a device."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from ingot.model.config import ModelConfig
from ingot.model.finetuning.task_model import TaskConfig, TaskModel
from ingot.model.transformer import LanguageModel

_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32

# Dense TFLOP/s (not 2:4 sparse) from the vendors' data sheets; fp32 is without TF32. All words of a row must occur in
# the name of the device; the first row that matches is used.
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
    # One of the two dies of the card: torch shows each die as a device.
    ({"mi250x"}, {_BF16: 191.5, _FP16: 191.5, _FP32: 23.9}),
    ({"mi300x"}, {_BF16: 1307, _FP16: 1307, _FP32: 163.4}),
]


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Dense peak in FLOP/s of a device, by the name that torch gives it. None if the device or the dtype is not listed.

    A MIG slice has only a part of the units of its card, so its peak is unknown too.
    """
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    if "mig" in words:
        return None
    for needed, peaks in _DENSE_PEAKS:
        if needed <= words:
            return peaks[dtype] * 1e12 if dtype in peaks else None
    return None


def num_parameters(model: nn.Module | ModelConfig, task: TaskConfig | None = None) -> int:
    """Number of parameters of a model, or of the model that a configuration describes: a language model, or, with a
    task, a task model. A tied parameter counts once."""
    model = _on_meta(model, task) if isinstance(model, ModelConfig) else model
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_by_part(model: nn.Module | ModelConfig, task: TaskConfig | None = None) -> dict[str, int]:
    """Number of parameters of each part of a model; the sum is `num_parameters`. A tied parameter counts for the first.

    The parts are embedding, attention, mlp and norms (each of all layers; norms with the final norm), head, and pair
    head. Parts that the model does not have are left out.
    """
    model = _on_meta(model, task) if isinstance(model, ModelConfig) else model
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():  # a tied parameter appears once, with its first name
        part = _part_of(name)
        found[part] = found.get(part, 0) + parameter.numel()
    return found


def _part_of(name: str) -> str:
    top, *rest = name.split(".")
    if top == "blocks":
        top = rest[1]
    return "norms" if top.endswith("_norm") else top.replace("_", " ")


def num_computing_parameters(config: ModelConfig, task: TaskConfig | None = None) -> int:
    """The N of `flops_per_token`: the parameters that each token is multiplied with.

    All parameters except the token, position and token type tables, which are only looked up. The vocab_size x
    hidden_size matrix of the head counts once, tied or not, because its product is computed. Heads that read only one
    token of a sequence do not count: those of sentence pairs, those of tasks of kind "sequence", and poolers.

    A model is built for it once, so it may be asked for in every step.
    """
    key = repr((config, task))  # the configurations may change, so they have no hash
    if key not in _COMPUTING:
        _COMPUTING[key] = _count_computing_parameters(config, task)
    return _COMPUTING[key]


_COMPUTING: dict[str, int] = {}


def _count_computing_parameters(config: ModelConfig, task: TaskConfig | None) -> int:
    model = _on_meta(config, task)
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))
    # A tied head was subtracted with the token table.
    tied = config.vocab_size * config.hidden_size if task is None and config.tie_word_embeddings else 0
    once = 0  # parameters that read one token of a sequence
    if isinstance(model, LanguageModel) and model.pair_head is not None:
        once = num_parameters(model.pair_head)
    if isinstance(model, TaskModel) and model.task.kind in ("sequence", "features"):
        once = num_parameters(model.head)
    return num_parameters(model) - tables - once + tied


def attended_keys(config: ModelConfig, layer: int, sequence_length: int) -> int:
    """Number of keys that count for a token of a layer: the whole sequence, or, in a local layer, the window and
    itself.

    In a local layer it is what a token in the middle of a long sequence sees: sliding_window keys if causal, else
    2 * sliding_window + 1. In a global layer the whole sequence counts, as is common: the causal half is not
    subtracted.
    """
    window = config.window
    if not config.is_local(layer) or window is None:
        return sequence_length
    return min(sequence_length, (1 if config.causal else 2) * window + 1)


def flops_per_token(config: ModelConfig, sequence_length: int, task: TaskConfig | None = None) -> float:
    """FLOPs of a training step per token, forward and backward: 6 N + 12 x H x E x (keys, summed over the layers).

    N is `num_computing_parameters`. The second term is the two products of attention (arXiv 2204.02311, appendix B),
    with H = num_attention_heads and E = head_dim (grouped-query attention shares keys, not products), and keys =
    `attended_keys`. As is common, work that is skipped still counts: the causal half, pairs of tokens of different
    documents, and rows without a target in masked language modelling (if the matrix of the head is a large part of N,
    the number is an upper bound). Recomputed activations do not count.
    """
    keys = sum(attended_keys(config, layer, sequence_length) for layer in range(config.num_hidden_layers))
    attention = 12 * config.num_attention_heads * config.head_size * keys
    return float(6 * num_computing_parameters(config, task) + attention)


def computed_pairs(config: ModelConfig, layer: int, document_lengths: Sequence[int]) -> int:
    """Number of (query, key) pairs that a layer computes for documents of these lengths, when nothing hidden is
    computed.

    A causal document of n tokens has n (n + 1) / 2 pairs, another one n^2. In a local layer a token sees at most the
    window before it, and if not causal as many after it.
    """
    window = config.window if config.is_local(layer) else None
    return sum(count * _pairs(length, config.causal, window) for length, count in Counter(document_lengths).items())


def _pairs(length: int, causal: bool, window: int | None) -> int:
    reach = length - 1 if window is None else min(window, length - 1)
    # Each token sees itself and `reach` tokens before it, less those that the first `reach` tokens lack.
    before = reach * length - reach * (reach + 1) // 2
    return length + (before if causal else 2 * before)


def computed_flops(
    config: ModelConfig, document_lengths: Sequence[int], num_targets: int | None = None, task: TaskConfig | None = None
) -> float:
    """FLOPs of forward and backward that are really needed for documents of these lengths.

    Beside `flops_per_token`, which counts as is common, this deducts what is hidden: the causal half, what is outside
    windows, pairs of tokens of different documents, and, with `num_targets`, the rows of the head without a target.
    Recomputed activations count in neither. Only integers are used, so it may be called for every micro-batch.

    Args:
        document_lengths: tokens of each document, for example `numpy.diff(cu_seqlens).tolist()`; zeros do not count.
            Padding is a document of its own, and counts.
        num_targets: rows that go through the head of a language model. None: all tokens.
    """
    tokens = sum(document_lengths)
    pairs_of = {local: 0 for local in map(config.is_local, range(config.num_hidden_layers))}
    for layer in range(config.num_hidden_layers):
        if not pairs_of[config.is_local(layer)]:
            pairs_of[config.is_local(layer)] = computed_pairs(config, layer, document_lengths)
    pairs = sum(pairs_of[config.is_local(layer)] for layer in range(config.num_hidden_layers))
    skipped = 0
    if task is None and num_targets is not None:
        skipped = (tokens - num_targets) * _head_parameters(config)
    parameters = num_computing_parameters(config, task)
    return 6.0 * (parameters * tokens - skipped) + 12.0 * config.num_attention_heads * config.head_size * pairs


def _head_parameters(config: ModelConfig) -> int:
    """Parameters of the head of a language model that each of its rows is multiplied with."""
    transform = config.hidden_size**2 if config.head_transform else 0
    return config.vocab_size * config.hidden_size + transform


def summary(config: ModelConfig, task: TaskConfig | None = None) -> str:
    """A description of a model in a few lines, with a table of its parameters by part."""
    kind = "causal (GPT)" if config.causal else "bidirectional (BERT)"
    heads = f"{config.num_attention_heads} heads of {config.head_size}"
    if config.kv_heads != config.num_attention_heads:
        heads += f" on {config.kv_heads} key/value heads"
    mlp = f"{'gated ' if config.gated_mlp else ''}{config.activation} MLP of {config.mlp_size}"
    head = f"{'tied' if config.tie_word_embeddings else 'untied'} head matrix"
    if task is not None:
        head = f"head of a {task.kind} task" + (f", {task.num_labels} labels" if task.kind != "features" else "")
    gflops = flops_per_token(config, config.max_position_embeddings, task) / 1e9
    model = _on_meta(config, task)
    total, computing = num_parameters(model), num_computing_parameters(config, task)
    lines = [
        f"{kind} transformer, {total:,} parameters ({computing:,} in matrix products)",
        f"  {config.num_hidden_layers} layers of hidden_size {config.hidden_size}, {heads}, {mlp}",
        f"  {config.norm_placement}-{config.norm}, {config.positions} positions up to "
        f"{config.max_position_embeddings:,}, vocabulary {config.vocab_size:,}, {head}",
    ]
    num_local = sum(map(config.is_local, range(config.num_hidden_layers)))
    if num_local:
        sides = "before it" if config.causal else "on either side"
        lines.append(
            f"  layer pattern {config.layer_pattern}: {num_local} local layers, where a token sees {config.window:,} "
            f"neighbours {sides}, and {config.num_hidden_layers - num_local} global layers"
        )
    lines += [f"  {part:<10}{count:>16,}  {count / total:6.1%}" for part, count in parameters_by_part(model).items()]
    lines.append(f"  {gflops:.3g} GFLOP per token of training at length {config.max_position_embeddings:,}")
    return "\n".join(lines)


def _on_meta(config: ModelConfig, task: TaskConfig | None = None) -> LanguageModel | TaskModel:
    with torch.device("meta"):
        return LanguageModel(config) if task is None else TaskModel(config, task)
