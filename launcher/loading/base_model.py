"""Where fine-tuning starts: a released or own model, with a head for the task, before it has memory."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ingot.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from ingot.launcher.config.aliases import modernize_manifest
from ingot.launcher.loading.tokenizer import open_tokenizer
from ingot.model.config import ModelConfig
from ingot.model.finetuning.task_model import TaskConfig, TaskModel
from ingot.model.huggingface.files import find_folder, read_config
from ingot.model.huggingface.load import Source
from ingot.model.initialization import InitialValues
from ingot.model.transformer import LanguageModel
from ingot.parallel.checkpoint import committed, read_manifest, read_tensor, resolve

PROBLEMS = {"classification": "classes", "multi_label": "labels", "regression": "regression", "choice": "choice"}
HEADS = {"tagging": "token", "answers": "span"}
"""Kinds of task whose head is not one of whole texts."""


@dataclass
class Start:
    """A model on the meta device, and the values of its parameters.

    Attributes:
        part: name, offset and shape of a box of a parameter to its fp32 values.
        new: parameters that the start does not have and that get first values.
        note: what the log shall say about it.
    """

    model: LanguageModel | TaskModel
    part: Callable[[str, tuple[int, ...], tuple[int, ...]], Tensor]
    new: set[str]
    note: str


def find_tokenizer(path: str, tokenizer: str | None) -> Tokenizer:
    """The tokenizer of a start.

    Raises:
        ValueError: there is none.
    """
    if tokenizer is not None:
        return load_tokenizer(tokenizer)
    if _is_own(path):
        folder = newest_or_best(path)
        return open_tokenizer(folder, read_manifest(folder), None)
    return load_tokenizer(find_folder(path))


def open_start(
    path: str,
    kind: str,
    labels: list[str],
    *,
    seed: int,
    weights: bool = True,
    layers: Sequence[int] = (),
    dropout: float | None = None,
    pooling: str | None = None,
) -> Start:
    """The model at `path`, with a head for a task.

    Args:
        kind: of task, as in the configuration.
        labels: names of the head's outputs; empty for tasks without.
        seed: of what is new.
        weights: false takes the shape alone, and all is new.
        layers: those that are kept; none for all.
        dropout, pooling: instead of the model's own.

    Raises:
        ValueError: nothing there, or no model that can learn the task.
    """
    start = _own(path, kind, labels, seed) if _is_own(path) else _released(path, kind, labels, seed)
    model = start.model
    config = model.config
    _check_direction(kind, path, config)
    task = getattr(model, "task", None)
    if layers:
        config = config.keep_layers(layers)
        start.part = _renumbered(start.part, layers)
        start.note += f"; layers kept: {', '.join(map(str, layers))} of {model.config.num_hidden_layers}"
    if dropout is not None:
        config = replace(config, dropout=dropout, attention_dropout=dropout)
        task = None if task is None else replace(task, dropout=dropout)
    if pooling is not None and task is not None:
        task = replace(task, pooling=pooling)
    with torch.device("meta"):
        start.model = LanguageModel(config) if task is None else TaskModel(config, task)
    if weights:
        return start
    values = InitialValues(start.model, seed)
    return Start(start.model, values.part, set(values.shapes), f"first values in the shape of {path}")


def _renumbered(part: Callable[..., Tensor], layers: Sequence[int]) -> Callable[..., Tensor]:
    """The values by the names in a model that has kept some layers."""

    def renumbered(name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        return part(re.sub(r"^blocks\.(\d+)", lambda found: f"blocks.{layers[int(found[1])]}", name), offset, shape)

    return renumbered


def task_of(kind: str, labels: list[str], config: ModelConfig) -> TaskConfig:
    """The head that a model without one gets: of whole texts BERT's pooler and a classifier, or a classifier of GPT's
    last token."""
    if kind in HEADS:
        number = 2 if kind == "answers" else len(labels)
        return TaskConfig(HEADS[kind], number, dropout=config.dropout, labels=labels or None)
    number = 1 if kind == "choice" else len(labels)
    body = {"pooling": "last"} if config.causal else {"pooling": "first", "layer": "tanh", "dropout": config.dropout}
    return TaskConfig("sequence", number, problem=PROBLEMS[kind], labels=labels or None, bias=not config.causal, **body)


def _check_direction(kind: str, path: str, config: ModelConfig) -> None:
    if kind == "generation" and not config.causal:
        raise ValueError(f"generation needs a model that reads from left to right, and {path} holds one that does not")
    if kind == "answers" and config.causal:
        raise ValueError(f"answers need a model that sees a paragraph as a whole, and {path} reads from left to right")


def is_finetuned(path: str) -> bool:
    """Whether a path means a checkpoint of a fine-tuning run.

    Raises:
        CheckpointError: it means no checkpoint.
    """
    return "labels" in read_manifest(newest_or_best(path))


def newest_or_best(path: str) -> Path:
    """The checkpoint that a path means: of a fine-tuning run the best one, where there is one."""
    best = committed(Path(path) / "best")
    return best[0] if best else resolve(Path(path))


def _is_own(path: str) -> bool:
    folder = Path(path)
    return folder.is_dir() and not (folder / "config.json").is_file()


def _released(path: str, kind: str, labels: list[str], seed: int) -> Start:
    if kind == "generation":
        _check_direction(kind, path, Source(path, "features").config)
        source = Source(path, "language")
    else:
        number: int | list[str] = 1 if kind == "choice" else 2 if kind == "answers" else labels
        head = HEADS.get(kind, "sequence")
        same = kind == "classification" and _labels_of(path) == labels and labels
        # A classifier of the same labels goes on learning; any other is made anew.
        options = {} if same else {"new_head": True, "labels": number, "problem": PROBLEMS.get(kind)}
        source = Source(path, head, seed=seed, **options)
    return Start(source.model(), source.part, source.new, f"weights of {source.folder}{_new(source.new)}")


def _labels_of(path: str) -> list[str]:
    """Names of the labels of a released classifier; [] where it is none."""
    values = read_config(find_folder(path))
    if not any(name.endswith("ForSequenceClassification") for name in values.get("architectures") or []):
        return []
    return [str(name) for name in (values.get("id2label") or {}).values()]


def _own(path: str, kind: str, labels: list[str], seed: int) -> Start:
    folder = newest_or_best(path)
    manifest = modernize_manifest(read_manifest(folder), folder)
    config = ModelConfig(**manifest.get("model", manifest["config"].get("model")))
    saved = {name.removeprefix("model/") for name in manifest["tensors"] if name.startswith("model/")}
    with torch.device("meta"):
        model = LanguageModel(config) if kind == "generation" else TaskModel(config, task_of(kind, labels, config))
    values = InitialValues(model, seed)
    # The pooler of BERT's pair head is what a classifier of whole texts goes on with.
    names = {
        name: name.replace("head.layer.dense", "pair_head.pooler") if config.pair_head else name
        for name in values.shapes
    }
    new = {name for name, own in names.items() if own not in saved}
    if lacking := sorted(name for name in new if not name.startswith("head.")):
        raise ValueError(
            f"checkpoint {folder} has no {lacking[0]} and {len(lacking) - 1} others of this model; a run that trained "
            f"additions alone is exported and merged first (launcher/export.py)"
        )

    def part(name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        if name in new:
            return values.part(name, offset, shape)
        whole = read_tensor(folder, manifest, f"model/{names[name]}")
        return whole[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))].float()

    return Start(model, part, new, f"weights of {folder}{_new(new)}")


def _new(names: set[str]) -> str:
    return f"; new: {', '.join(sorted(names))}" if names else ""
