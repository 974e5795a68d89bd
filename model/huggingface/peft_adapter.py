"""LoRA, AdaLoRA and IA3 of a model of ours -> a folder that the peft library opens on the same released model.

AdaLoRA is written as a LoRA of the ranks that are left, which computes the same.
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

    Queries, keys and values that the family keeps as one matrix become one LoRA of the sum of their ranks.

    Args:
        added: parameters of the additions, by our names: `...lora_A.default.weight`, `...ia3_l.default`, or what
            `as_lora` makes of AdaLoRA.
        head: parameters of the task's head, which are saved whole.
        base: the model that it belongs to: a folder or a name on the hub.
        alpha: of LoRA; None where its scale is in the matrices.

    Raises:
        ValueError: no family can hold the model, or it keeps as one what IA3 scales apart.
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
    tensors, ranks, alphas, inner = {}, {}, {}, []
    is_lora = any("lora_A" in parts for parts in by_module.values())
    for theirs, (row, _, modules) in targets.items():
        name = theirs.replace(BODY, prefix)
        if is_lora:
            a, b, count = _joined(row, modules, by_module, config)
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a, b
            ranks[name], alphas[name] = a.shape[0], a.shape[0] if alpha is None else alpha * count
        else:
            if len(row.parts) > 1:
                raise ValueError(f"{chosen.model_type} keeps {', '.join(row.parts)} as one, and IA3 scales them apart")
            tensors[f"{name}.ia3_l"] = by_module[modules[0]]["ia3_l"]
            if modules[0].endswith(("down", "output")):
                inner.append(name)
    kept = set()
    for name, value in head.items():
        module, _, what = name.rpartition(".")
        _, theirs = find_module(chosen.rows(kind), module)
        theirs = theirs.replace(BODY, prefix)
        tensors[f"{theirs}.{what}"] = value.detach().float().cpu()
        kept.add(theirs.rsplit(".", 1)[0] if theirs.endswith(".dense") else theirs)
    settings: dict[str, Any] = {
        "base_model_name_or_path": base,
        "task_type": TASK_TYPES[task.kind if task is not None else None],
        "target_modules": sorted(name.replace(BODY, prefix) for name in targets),
        "modules_to_save": sorted({name.rsplit(".", 1)[-1] for name in kept}) or None,
        "inference_mode": True,
        "fan_in_fan_out": any(row.transposed for row, _, _ in targets.values()),
    }
    if is_lora:
        settings |= {"peft_type": "LORA", "r": min(ranks.values()), "lora_alpha": alpha or 1.0, "lora_dropout": 0.0}
        settings |= {"rank_pattern": ranks, "alpha_pattern": alphas, "bias": "none"}
    else:
        settings |= {"peft_type": "IA3", "feedforward_modules": sorted(inner)}
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    named = {f"base_model.model.{name}": value.contiguous() for name, value in tensors.items()}
    save_file(named, str(folder / "adapter_model.safetensors"), {"format": "pt"})


def as_lora(added: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """AdaLoRA's additions (`...lora_A.default`, `...lora_E.default`, `...lora_B.default`) with singular values and
    scale in A, and without the ranks that were given up; layers of which none is left are not there."""
    result = {}
    for name, singular_R1 in added.items():
        if name.endswith(".lora_E.default"):
            module, kept = name.removesuffix(".lora_E.default"), singular_R1[:, 0] != 0
            if kept.any():
                result[f"{module}.lora_A"] = (added[f"{module}.lora_A.default"] * singular_R1 * scale)[kept]
                result[f"{module}.lora_B"] = added[f"{module}.lora_B.default"][:, kept]
    return result


def find_module(rows: tuple[Row, ...], module: str) -> tuple[Row, str]:
    """The row of a module of ours, and the name of theirs."""
    for row in rows:
        for part in row.parts:
            match = re.fullmatch(re.escape(part).replace(r"\*", r"(\d+)"), module)
            if match:
                return row, row.theirs.replace("*", match[1]) if match.groups() else row.theirs
    raise ValueError(f"{module} has no counterpart in this family")


def _joined(
    row: Row, modules: list[str], by_module: Mapping[str, Mapping[str, Tensor]], config: ModelConfig
) -> tuple[Tensor, Tensor, int]:
    """A (rank, in) and B (out, rank) of their matrix, and of how many of ours they are made."""
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
