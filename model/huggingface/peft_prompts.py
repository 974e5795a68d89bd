"""Soft prompts of a model -> a folder that the peft library opens on the same released model.

peft stores the outputs of the prompt encoders, not the encoders. It puts the virtual tokens first, so this works only
for causal models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ingot.model.attention.kv_cache import KeyValueCache
from ingot.model.finetuning.soft_prompts import PromptedEmbedding
from ingot.model.finetuning.task_model import TaskModel
from ingot.model.huggingface.families.registry import choose_family
from ingot.model.huggingface.mapping.key_map import BODY
from ingot.model.huggingface.peft_adapter import TASK_TYPES, find_module
from ingot.model.transformer import LanguageModel

TYPES = {"prompt_tuning": "PROMPT_TUNING", "p_tuning": "P_TUNING", "prefix_tuning": "PREFIX_TUNING"}


def write_prompts(
    folder: Path,
    model: LanguageModel | TaskModel,
    kind: str,
    head: Mapping[str, Tensor],
    *,
    base: str,
    family: str | None = None,
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors.

    Args:
        kind: prompt_tuning, p_tuning or prefix_tuning.
        head: parameters of the head of the task, which are saved whole.
        base: the base model: a folder or a name on the hub.

    Raises:
        ValueError: no family can express the model, it is not causal, or it is a classifier with prefix tuning.
    """
    config, task = model.config, getattr(model, "task", None)
    if not config.causal:
        raise ValueError(
            "peft puts virtual tokens first, but the first token of this model must be the one that is pooled"
        )
    if kind == "prefix_tuning" and task is not None:
        raise ValueError(
            "peft supports prefix tuning only for language models: its classifiers accept no keys and values"
        )
    head_kind = task.kind if task is not None else "language"
    chosen = choose_family(config, head_kind, task, family)
    prompt = _keys_and_values(model) if kind == "prefix_tuning" else _embeddings(model)
    tensors = {"prompt_embeddings": prompt}
    for name, value in head.items():
        module, _, what = name.rpartition(".")
        theirs = find_module(chosen.rows(head_kind), module)[1].replace(BODY, chosen.prefix_of(head_kind))
        tensors[f"base_model.{theirs}.{what}"] = value.detach()
    settings: dict[str, Any] = {
        "peft_type": TYPES[kind],
        "base_model_name_or_path": base,
        "task_type": TASK_TYPES[task.kind if task is not None else None],
        "inference_mode": True,
        "num_virtual_tokens": len(prompt),
        "num_transformer_submodules": 1,
        "num_layers": config.num_hidden_layers,
    }
    if kind == "prefix_tuning":
        settings |= {"token_dim": config.kv_heads * config.head_size, "num_attention_heads": config.kv_heads}
        settings |= {"encoder_hidden_size": settings["token_dim"], "prefix_projection": False}
    else:
        settings |= {"token_dim": config.hidden_size, "num_attention_heads": config.num_attention_heads}
        settings |= {"encoder_hidden_size": config.hidden_size} if kind == "p_tuning" else {}
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    named = {name: value.float().cpu().contiguous() for name, value in tensors.items()}
    save_file(named, str(folder / "adapter_model.safetensors"), {"format": "pt"})


@torch.no_grad()
def _embeddings(model: LanguageModel | TaskModel) -> Tensor:
    """The embeddings of virtual tokens, (virtual tokens, hidden size)."""
    embedding = _prompted(model)
    return embedding.prompt_encoder(torch.arange(embedding.num_virtual_tokens))


@torch.no_grad()
def _keys_and_values(model: LanguageModel | TaskModel) -> Tensor:
    """The keys and values of virtual tokens, (virtual tokens, layers x (keys, values)). Keys are rotated."""
    number = _prompted(model).num_virtual_tokens
    cache = KeyValueCache(model.config.num_hidden_layers, number)
    model.hidden_states(-1 - torch.arange(number)[None], cache=cache)
    parts: list[Tensor] = []
    for layer in cache.layers:
        parts += [seen_BSKE[0].flatten(1) for seen_BSKE in layer.seen()]
    return torch.cat(parts, dim=1)


def _prompted(model: LanguageModel | TaskModel) -> PromptedEmbedding:
    embedding = model.embedding.token
    assert isinstance(embedding, PromptedEmbedding), "the model has no soft prompts"
    return embedding
