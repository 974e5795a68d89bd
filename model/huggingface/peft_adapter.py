"""LoRA, AdaLoRA and IA3 of a model -> a folder that the peft library opens on the same released model.

AdaLoRA is written as LoRA with the remaining ranks, which computes the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ingot.model.config import ModelConfig
from ingot.model.finetuning.task_model import TaskConfig
from ingot.model.huggingface.families.registry import choose_family
from ingot.model.huggingface.mapping.key_map import BODY, Row

TASK_TYPES = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS", None: "CAUSAL_LM"}


def write_adapter(
    folder: Path,
    config: ModelConfig,
    task: TaskConfig | None,
    added: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    *,
    base: str,
    alpha: float | None,
    family: str | None = None,
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors.

    If the family stores queries, keys and values as one matrix, they become one LoRA with the sum of their ranks.

    Args:
        added: added parameters by name: `...lora_A.default.weight`, `...ia3_l.default`, or the result of `as_lora` for
            AdaLoRA.
        head: parameters of the head of the task, which are saved whole.
        base: the base model: a folder or a name on the hub.
        alpha: lora_alpha; None if the scale is in the matrices.

    Raises:
        ValueError: no family can express the model, or it stores matrices as one that IA3 scales separately.
    """
    kind = task.kind if task is not None else "language"
    chosen = choose_family(config, kind, task, family)
    prefix = chosen.prefix_of(kind)
    by_module: dict[str, dict[str, Tensor]] = {}
    for name, value in added.items():
        module, _, what = re.sub(r"\.default(\.weight)?$", "", name).rpartition(".")
        by_module.setdefault(module, {})[what] = value.detach().float().cpu()
    targets: dict[str, tuple[Row, str, list[str]]] = {}
    for module in by_module:
        row, theirs = find_module(chosen.rows(kind), module)
        targets.setdefault(theirs, (row, theirs, []))[2].append(module)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    feedforward: list[str] = []
    is_lora = any("lora_A" in parts for parts in by_module.values())
    for theirs, (row, _, modules) in targets.items():
        name = theirs.replace(BODY, prefix)
        if is_lora:
            a, b, count = _joined(row, modules, by_module, config)
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a, b
            ranks[name], alphas[name] = a.shape[0], a.shape[0] if alpha is None else alpha * count
        else:
            if len(row.parts) > 1:
                parts = ", ".join(row.parts)
                raise ValueError(f"{chosen.model_type} stores {parts} as one matrix, but IA3 scales them separately")
            tensors[f"{name}.ia3_l"] = by_module[modules[0]]["ia3_l"]
            if modules[0].endswith(("down", "output")):
                feedforward.append(name)
    head_modules: set[str] = set()
    for name, value in head.items():
        module, _, what = name.rpartition(".")
        _, theirs = find_module(chosen.rows(kind), module)
        theirs = theirs.replace(BODY, prefix)
        tensors[f"{theirs}.{what}"] = value.detach().float().cpu()
        head_modules.add(theirs.rsplit(".", 1)[0] if theirs.endswith(".dense") else theirs)
    settings: dict[str, Any] = {
        "base_model_name_or_path": base,
        "task_type": TASK_TYPES[task.kind if task is not None else None],
        "target_modules": sorted(name.replace(BODY, prefix) for name in targets),
        "modules_to_save": sorted({name.rsplit(".", 1)[-1] for name in head_modules}) or None,
        "inference_mode": True,
        "fan_in_fan_out": any(row.transposed for row, _, _ in targets.values()),
    }
    if is_lora:
        settings |= {"peft_type": "LORA", "r": min(ranks.values()), "lora_alpha": alpha or 1.0, "lora_dropout": 0.0}
        settings |= {"rank_pattern": ranks, "alpha_pattern": alphas, "bias": "none"}
    else:
        settings |= {"peft_type": "IA3", "feedforward_modules": sorted(feedforward)}
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    named = {f"base_model.model.{name}": value.contiguous() for name, value in tensors.items()}
    save_file(named, str(folder / "adapter_model.safetensors"), {"format": "pt"})


def as_lora(added: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parameters of AdaLoRA (`...lora_A.default`, `...lora_E.default`, `...lora_B.default`) as LoRA: singular
    values and scale are multiplied into A, and removed ranks are left out, as are layers without any rank."""
    result = {}
    for name, singular_R1 in added.items():
        if name.endswith(".lora_E.default"):
            module, remains = name.removesuffix(".lora_E.default"), singular_R1[:, 0] != 0
            if remains.any():
                result[f"{module}.lora_A"] = (added[f"{module}.lora_A.default"] * singular_R1 * scale)[remains]
                result[f"{module}.lora_B"] = added[f"{module}.lora_B.default"][:, remains]
    return result


def find_module(rows: tuple[Row, ...], module: str) -> tuple[Row, str]:
    """The row of the key map for a module, and the name of the module in the checkpoint."""
    for row in rows:
        for part in row.parts:
            match = re.fullmatch(re.escape(part).replace(r"\*", r"(\d+)"), module)
            if match:
                return row, row.theirs.replace("*", match[1]) if match.groups() else row.theirs
    raise ValueError(f"{module} has no counterpart in this model family")


def _joined(
    row: Row, modules: list[str], by_module: Mapping[str, Mapping[str, Tensor]], config: ModelConfig
) -> tuple[Tensor, Tensor, int]:
    """A (rank, in) and B (out, rank) for the matrix of the checkpoint, and the number of modules that they combine."""
    if len(row.parts) == 1:
        parts = by_module[modules[0]]
        return parts["lora_A"], parts["lora_B"], 1
    sizes = {"query": config.num_attention_heads * config.head_size, "key": config.kv_heads * config.head_size}
    sizes["value"] = sizes["key"]
    blocks = {module.rsplit(".", 1)[-1]: by_module[module] for module in modules}
    present = [part.rsplit(".", 1)[-1] for part in row.parts]
    a = torch.cat([blocks[part]["lora_A"] for part in present if part in blocks])
    b = torch.zeros(sum(sizes[part] for part in present), a.shape[0])
    row_at = column_at = 0
    for part in present:
        if part in blocks:
            rank = blocks[part]["lora_B"].shape[1]
            b[row_at : row_at + sizes[part], column_at : column_at + rank] = blocks[part]["lora_B"]
            column_at += rank
        row_at += sizes[part]
    return a, b, len(blocks)
