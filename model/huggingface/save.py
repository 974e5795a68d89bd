"""A module of ours, or its tensors one by one -> a folder that transformers opens."""

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
from ingot.model.huggingface.mapping.key_map import BODY, Shape, arrange
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
    """Writes config.json, generation_config.json where the model can generate, and safetensors.

    Args:
        folder: must not exist, or be empty.
        dtype: of the file. None is that of the module's embedding.
        family: a model_type; None takes the first one that can express the model.
        max_shard_bytes: largest file, but for a single tensor that is larger.
        token_ids: ids of "bos", "eos", "pad", "cls", "sep", "mask" where there are such tokens.

    Raises:
        ValueError: no family, or not the named one, can express the model, or the folder holds something.
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
    """`save` into a folder that is there, of a model that need not be: `read` gives its tensors by name, and each one
    is forgotten before the next is asked for.

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
    placed, unknown = arrange(chosen.rows(kind), shapes)
    assert not unknown, f"{chosen.model_type} has no rows for {unknown}"

    values = chosen.write_model(config) | (chosen.write_task(task) if task is not None else {})
    values |= _token_settings(values, token_ids)
    name_of_type = str(dtype).removeprefix("torch.")
    values |= {"architectures": [chosen.heads[kind].architecture], "dtype": name_of_type, "torch_dtype": name_of_type}
    _write_json(folder / "config.json", dict(sorted(values.items())))
    if kind == "language" and config.causal:
        ids = {key: values[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if values[key] is not None}
        _write_json(folder / "generation_config.json", ids)

    prefix, tensors = chosen.prefix_of(kind), {}
    for each in placed:
        names = [each.name.replace(BODY, prefix)]
        if each.twin is not None and not config.tie_word_embeddings:
            names.append(each.twin)
        for name in names:
            tensors[name] = (each.shape, _reader(each.parts, each.transposed, read, dtype))
    _write_shards(folder, tensors, dtype, max_shard_bytes)


def _token_settings(values: Mapping[str, Any], token_ids: TokenIds) -> dict[str, Any]:
    """All ids are written, null too: their defaults are those of the released vocabularies."""
    ids = {f"{name}_token_id": token_ids.get(name) for name in ("bos", "eos", "pad")}
    ids |= {f"{name}_token_id": token_ids[name] for name in ("cls", "sep") if token_ids.get(name) is not None}
    fixed = values.get("pad_token_id")
    if fixed is not None:  # RoBERTa's, whose positions follow from it
        if token_ids.get("pad") not in (None, fixed):
            raise ValueError(
                f"the padding token is {token_ids['pad']}, and this family's positions begin behind its id: with "
                f"position_offset {fixed + 1} it must be {fixed}"
            )
        ids["pad_token_id"] = fixed
    return ids


def _reader(parts: list[str], transposed: bool, read: Callable[[str], Tensor], dtype: torch.dtype):
    def tensor() -> Tensor:
        values = [read(name) for name in parts]
        whole = values[0] if len(values) == 1 else torch.cat(values)
        return (whole.T if transposed else whole).to("cpu", dtype).contiguous()

    return tensor


def _write_shards(
    folder: Path, tensors: Mapping[str, tuple[Shape, Callable[[], Tensor]]], dtype: torch.dtype, most: int
) -> None:
    """model.safetensors, or shards of at most so many bytes and their index."""
    size_of = lambda shape: math.prod(shape) * dtype.itemsize  # noqa: E731
    shards: list[list[str]] = [[]]
    filled = total = 0
    for name, (shape, _) in tensors.items():
        if shards[-1] and filled + size_of(shape) > most:
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
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        _write_json(folder / "model.safetensors.index.json", index)


def _write_safetensors(
    path: Path, tensors: Mapping[str, tuple[Shape, Callable[[], Tensor]]], dtype: torch.dtype
) -> None:
    """The safetensors format (8 bytes of length, a JSON header, the data), one tensor in memory at a time; the
    library's own writer takes them all at once."""
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
    file.write(memoryview(tensor.flatten().view(torch.uint8).numpy()))


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
