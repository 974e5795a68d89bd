"""The base model of fine-tuning: a released or own model, with the head of the task, before it has memory."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.config.aliases import modernize_manifest
from ingot.launcher.loading.checkpoint_config import model_config
from ingot.launcher.loading.tokenizer import open_tokenizer
from ingot.launcher.tasks.task_kind import Head, TaskKind
from ingot.model.config import ModelConfig
from ingot.model.finetuning.task_model import Pooling, TaskConfig, TaskModel
from ingot.model.huggingface.files import find_folder, read_config
from ingot.model.huggingface.load import ReleasedModel
from ingot.model.initialization import InitialValues
from ingot.model.transformer import LanguageModel
from ingot.parallel.checkpoint import CheckpointError, committed, open_newest, read_manifest, read_tensor
from ingot.parallel.checkpoint.run_folder import warn


@dataclass
class BaseModel:
    """The model that fine-tuning starts from: on the meta device, with the values of its parameters.

    Attributes:
        part: name, offset and shape of a rectangle of a parameter to its fp32 values.
        new: parameters that the files lack and that get initial values.
        note: where the values come from, for the log.
    """

    model: LanguageModel | TaskModel
    part: Callable[[str, tuple[int, ...], tuple[int, ...]], Tensor]
    new: set[str]
    note: str


def find_tokenizer(path: str, tokenizer: str | None) -> Tokenizer:
    """The tokenizer of a base model, or the one in the folder `tokenizer`.

    Raises:
        ValueError: there is none.
    """
    if tokenizer is not None:
        found = load_tokenizer(tokenizer)
        if not _is_own(path):
            found.settings_folder = find_folder(path)
        return found
    if _is_own(path):
        return open_tokenizer(*newest_or_best(path), None)
    return load_tokenizer(find_folder(path))


def open_base_model(
    path: str,
    kind: TaskKind,
    labels: list[str],
    *,
    seed: int,
    pretrained: bool = True,
    layers: Sequence[int] = (),
    dropout: float | None = None,
    pooling: Pooling | None = None,
) -> BaseModel:
    """The model at `path`, with the head of a task.

    Args:
        labels: names of the head's outputs; empty for tasks without.
        seed: of the initial values.
        pretrained: false takes only the shape; all values are initial ones.
        layers: the layers to keep; empty keeps all.
        dropout, pooling: instead of the model's own.

    Raises:
        ValueError: there is no model, or it cannot learn the task.
    """
    base = _own(path, kind, labels, seed) if _is_own(path) else _released(path, kind, labels, seed)
    config = base.model.config
    _check_attention(kind, path, config)
    task = getattr(base.model, "task", None)
    if layers:
        config = config.keep_layers(layers)
        base.part = _renumbered(base.part, layers)
        base.note += f"; layers kept: {', '.join(map(str, layers))} of {base.model.config.num_hidden_layers}"
    if dropout is not None:
        config = replace(config, dropout=dropout, attention_dropout=dropout)
        task = None if task is None else replace(task, dropout=dropout)
    if pooling is not None and task is not None:
        task = replace(task, pooling=pooling)
    with torch.device("meta"):
        base.model = LanguageModel(config) if task is None else TaskModel(config, task)
    if pretrained:
        return base
    values = InitialValues(base.model, seed)
    return BaseModel(base.model, values.part, set(values.shapes), f"initial values in the shape of {path}")


def _renumbered(part: Callable[..., Tensor], layers: Sequence[int]) -> Callable[..., Tensor]:
    """The values by the names in a model that has kept some layers."""

    def renumbered(name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        return part(re.sub(r"^blocks\.(\d+)", lambda found: f"blocks.{layers[int(found[1])]}", name), offset, shape)

    return renumbered


def task_of(head: Head, labels: list[str], config: ModelConfig) -> TaskConfig:
    """The head of a model that has none: for whole texts BERT's pooler and a classifier, or a classifier of the last
    token of a GPT."""
    number, names = head.outputs(labels), labels or None
    if head.kind != "sequence":
        return TaskConfig(head.kind, number, dropout=config.dropout, labels=names)
    task = TaskConfig(head.kind, number, problem=head.problem, labels=names, bias=not config.causal)
    if config.causal:
        return replace(task, pooling="last")
    return replace(task, pooling="first", layer="tanh", dropout=config.dropout)


def _check_attention(kind: TaskKind, path: str, config: ModelConfig) -> None:
    if kind.attention == "causal" and not config.causal:
        raise ValueError(f"{kind.name} needs a model that reads from left to right (a GPT), which {path} is not")
    if kind.attention == "bidirectional" and config.causal:
        raise ValueError(f"{kind.name} needs a model that sees the whole text at once (a BERT), which {path} is not")


def is_finetuned(path: str) -> bool:
    """Whether a path is a checkpoint of a fine-tuning run, or such a run.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    return "labels" in newest_or_best(path)[1]


def newest_or_best(path: str) -> tuple[Path, dict]:
    """The checkpoint at a path, and its manifest: of a fine-tuning run the best one, if there is one."""
    for best in committed(Path(path) / "best"):
        try:
            return best, read_manifest(best)
        except CheckpointError as error:
            warn(f"skipped: {error}")
    return open_newest(Path(path))


def _is_own(path: str) -> bool:
    folder = Path(path)
    return folder.is_dir() and not (folder / "config.json").is_file()


def _released(path: str, kind: TaskKind, labels: list[str], seed: int) -> BaseModel:
    if kind.head is None:
        _check_attention(kind, path, ReleasedModel(path, "features").config)
        source = ReleasedModel(path, "language")
    elif kind.head == Head("sequence", "classes") and labels and _labels_of(path) == labels:
        source = ReleasedModel(path, kind.head.kind, seed=seed)  # a classifier of the same labels goes on learning
    else:
        number = kind.head.num_outputs
        outputs: int | list[str] = labels if number is None else number
        source = ReleasedModel(
            path, kind.head.kind, seed=seed, new_head=True, labels=outputs, problem=kind.head.problem
        )
    return BaseModel(source.model(), source.part, source.new, f"weights of {source.folder}{_new(source.new)}")


def _labels_of(path: str) -> list[str]:
    """Names of the labels of a released classifier; [] for another model."""
    values = read_config(find_folder(path))
    if not any(name.endswith("ForSequenceClassification") for name in values.get("architectures") or []):
        return []
    return [str(name) for name in (values.get("id2label") or {}).values()]


def _own(path: str, kind: TaskKind, labels: list[str], seed: int) -> BaseModel:
    folder, stored = newest_or_best(path)
    manifest = modernize_manifest(stored, folder)
    config = model_config(folder, manifest)
    saved = {name.removeprefix("model/") for name in manifest["tensors"] if name.startswith("model/")}
    with torch.device("meta"):
        model = LanguageModel(config) if kind.head is None else TaskModel(config, task_of(kind.head, labels, config))
    values = InitialValues(model, seed)
    # A classifier of whole texts starts from the pooler of BERT's pair head.
    names = {
        name: name.replace("head.layer.dense", "pair_head.pooler") if config.pair_head else name
        for name in values.shapes
    }
    new = {name for name, own in names.items() if own not in saved}
    if lacking := sorted(name for name in new if not name.startswith("head.")):
        raise ValueError(
            f"checkpoint {folder} lacks {lacking[0]} and {len(lacking) - 1} other parameters of this model; if its run "
            f"trained only added parameters, export it first (launcher/export.py)"
        )

    def part(name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        if name in new:
            return values.part(name, offset, shape)
        whole = read_tensor(folder, manifest, f"model/{names[name]}")
        return whole[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))].float()

    return BaseModel(model, part, new, f"weights of {folder}{_new(new)}")


def _new(names: set[str]) -> str:
    return f"; new: {', '.join(sorted(names))}" if names else ""
