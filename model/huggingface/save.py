"""Saving: a model, or its tensors one by one -> a folder that transformers opens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ingot.durable_files import flush_to_disk
from ingot.model.config import ModelConfig
from ingot.model.finetuning.task_model import TaskConfig, TaskModel
from ingot.model.huggingface.families.registry import choose_family
from ingot.model.huggingface.folder import new_folder
from ingot.model.huggingface.mapping.family import kind_of_task
from ingot.model.huggingface.mapping.key_map import BODY, Shape, map_tensors
from ingot.model.transformer import LanguageModel

SHARD_BYTES = 5_000_000_000
TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
TokenIds = Mapping[str, int | list[int] | None]


def save(
    module: LanguageModel | TaskModel,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    *,
    family: str | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    token_ids: TokenIds | None = None,
) -> None:
    """Writes config.json, safetensors and, if the model can generate, generation_config.json.

    Args:
        folder: must not exist, or must be empty.
        dtype: dtype of the file. None: that of the embedding.
        family: a model_type. None takes the first one that can express the model.
        max_shard_bytes: largest size of a file; a single tensor may be larger.
        token_ids: ids of the tokens "bos", "eos", "pad", "cls", "sep", "mask" that exist.

    Raises:
        ValueError: no family, or not the named one, can express the model, or the folder is not empty.
    """
    parameters = dict(module.named_parameters())
    task = module.task if isinstance(module, TaskModel) else None
    dtype = dtype or parameters["embedding.token.weight"].dtype
    read = lambda name: parameters[name].detach()  # noqa: E731
    with new_folder(folder) as temporary:
        write(temporary, module.config, task, read, dtype, family, max_shard_bytes, token_ids or {})


def write(
    folder: Path,
    config: ModelConfig,
    task: TaskConfig | None,
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    family: str | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    token_ids: TokenIds | None = None,
) -> None:
    """As `save`, into an existing folder, of a model that need not be in memory: `read` returns a tensor by name, and
    each tensor is released before the next one is read.

    Raises:
        ValueError: as `save`.
    """
    if dtype not in TYPES:
        raise ValueError(f"dtype is {dtype}; choose one of {', '.join(map(str, TYPES))}")
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}; it must be at least 1")
    token_ids = token_ids or {}
    kind = kind_of_task(task) if task is not None else ("pretraining" if config.pair_head else "language")
    chosen = choose_family(config, kind, task, family)
    with torch.device("meta"):
        model: nn.Module = LanguageModel(config) if task is None else TaskModel(config, task)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    tensors, unknown = map_tensors(chosen.rows(kind), shapes)
    assert not unknown, f"{chosen.model_type} has no rows for {unknown}"

    values = chosen.write_model(config) | (chosen.write_task(task) if task is not None else {})
    values |= _token_settings(values, token_ids)
    name_of_type = str(dtype).removeprefix("torch.")
    values |= {"architectures": [chosen.heads[kind].architecture], "dtype": name_of_type, "torch_dtype": name_of_type}
    _write_json(folder / "config.json", dict(sorted(values.items())))
    if kind == "language" and config.causal:
        ids = {key: values[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if values[key] is not None}
        _write_json(folder / "generation_config.json", ids)

    prefix = chosen.prefix_of(kind)
    readers: dict[str, tuple[Shape, Callable[[], Tensor]]] = {}
    for tensor in tensors:
        names = [tensor.name.replace(BODY, prefix)]
        if tensor.twin is not None and not config.tie_word_embeddings:
            names.append(tensor.twin)
        for name in names:
            readers[name] = (tensor.shape, _reader(tensor.parts, tensor.transposed, read, dtype))
    _write_shards(folder, readers, dtype, max_shard_bytes)


def _token_settings(values: Mapping[str, Any], token_ids: TokenIds) -> dict[str, Any]:
    """All ids are written, also null: the defaults of transformers are those of the released vocabularies."""
    ids = {f"{name}_token_id": token_ids.get(name) for name in ("bos", "eos", "pad")}
    ids |= {f"{name}_token_id": token_ids[name] for name in ("cls", "sep") if token_ids.get(name) is not None}
    fixed = values.get("pad_token_id")
    if fixed is not None:  # RoBERTa: the positions depend on it
        if token_ids.get("pad") not in (None, fixed):
            raise ValueError(
                f"the padding token is {token_ids['pad']}, but the positions of this family start after its id: with "
                f"position_offset {fixed + 1} it must be {fixed}"
            )
        ids["pad_token_id"] = fixed
    return ids


def _reader(
    parts: list[str], transposed: bool, read: Callable[[str], Tensor], dtype: torch.dtype
) -> Callable[[], Tensor]:
    def tensor() -> Tensor:
        values = [read(name) for name in parts]
        whole = values[0] if len(values) == 1 else torch.cat(values)
        return (whole.T if transposed else whole).to("cpu", dtype).contiguous()

    return tensor


def _write_shards(
    folder: Path, tensors: Mapping[str, tuple[Shape, Callable[[], Tensor]]], dtype: torch.dtype, max_bytes: int
) -> None:
    """Writes model.safetensors, or shards of at most `max_bytes` and their index."""
    size_of = lambda shape: math.prod(shape) * dtype.itemsize  # noqa: E731
    shards: list[list[str]] = [[]]
    filled = total = 0
    for name, (shape, _) in tensors.items():
        if shards[-1] and filled + size_of(shape) > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size_of(shape)
        total += size_of(shape)
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = ["model.safetensors"]
    for file, names in zip(files, shards, strict=True):
        _write_safetensors(folder / file, {name: tensors[name] for name in names}, dtype)
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / "model.safetensors.index.json", index)


def _write_safetensors(
    path: Path, tensors: Mapping[str, tuple[Shape, Callable[[], Tensor]]], dtype: torch.dtype
) -> None:
    """Writes the safetensors format (8 bytes of length, a JSON header, the data) with one tensor in memory at a time.
    The writer of the library needs all tensors at once."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, (shape, _) in tensors.items():
        end = begin + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape, read in tensors.values():
            tensor = read()
            assert tuple(tensor.shape) == shape
            _write_tensor(file, tensor)
        flush_to_disk(file)


def _write_tensor(file: BinaryIO, tensor: Tensor) -> None:
    file.write(tensor.flatten().view(torch.uint8).numpy().data)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
