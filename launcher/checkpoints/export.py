"""Writes a run or checkpoint as a Hugging Face folder, or its adapter as a folder of peft: the command `export`."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ingot.data.tasks.instruction import end_ids
from ingot.data.tokenizers.huggingface_export import export_tokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.config.export import ExportOptions
from ingot.launcher.finetuning.finetune_run import task_settings
from ingot.launcher.loading.base_model import is_finetuned
from ingot.launcher.loading.finetuned_model import additions, merge, open_finetuned
from ingot.launcher.loading.language_model import open_checkpoint
from ingot.launcher.loading.tokenizer import open_tokenizer
from ingot.model.config import ModelConfig
from ingot.model.finetuning.task_model import TaskConfig
from ingot.model.huggingface.folder import new_folder
from ingot.model.huggingface.peft_adapter import as_lora, write_adapter
from ingot.model.huggingface.peft_prompts import TYPES, write_prompts
from ingot.model.huggingface.save import SHARD_BYTES, write
from ingot.parallel.checkpoint import read_tensor


def export(options: ExportOptions) -> None:
    """Writes a Hugging Face folder, tensor by tensor. The folder appears when it is complete.

    Raises:
        ValueError: there is no such checkpoint or tokenizer, no known family can express the model, or the folder
            exists.
    """
    ends: Sequence[int] = ()
    if is_finetuned(options.checkpoint):
        config, task, read, tokenizer, ends = _merged(options)
    else:
        folder, manifest, config = open_checkpoint(options.checkpoint)
        tokenizer, task = open_tokenizer(folder, manifest, options.tokenizer), None
        read = lambda name: read_tensor(folder, manifest, f"model/{name}")  # noqa: E731
    write_folder(
        options.output,
        config,
        task,
        read,
        tokenizer,
        dtype=getattr(torch, options.dtype),
        family=options.family,
        max_shard_bytes=options.max_shard_bytes,
        exact_tokenizer=options.exact_tokenizer,
        ends=ends,
    )


def write_folder(
    folder: str | Path,
    config: ModelConfig,
    task: TaskConfig | None,
    read: Callable[[str], torch.Tensor],
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype,
    family: str | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    exact_tokenizer: bool = True,
    ends: Sequence[int] = (),
) -> None:
    """Writes model and tokenizer into a new folder, which appears when it is complete.

    Args:
        task: of a model with the head of a task; None for a language model.
        read: gives a tensor by its name.
        ends: tokens that a language model has learned to end with, beyond those that its tokenizer and settings name.

    Raises:
        ValueError: the folder exists, or no family, or not the named one, can express the model.
    """
    with new_folder(folder) as temporary:
        export_tokenizer(
            tokenizer,
            temporary,
            causal=config.causal and task is None,  # the head of a task reads texts with their end token
            token_types=config.type_vocab_size > 1,
            exact=exact_tokenizer,
            chats=task is None and config.causal,
        )
        (temporary / GENERATION).unlink(missing_ok=True)
        token_ids = token_ids_of(tokenizer, config.causal, ends)
        write(temporary, config, task, read, dtype, family, max_shard_bytes, token_ids)
        if (temporary / GENERATION).is_file() and (tokenizer.settings_folder / GENERATION).is_file():
            _write_generation(tokenizer, temporary / GENERATION, ends)


GENERATION = "generation_config.json"


def _write_generation(tokenizer: Tokenizer, path: Path, ends: Sequence[int]) -> None:
    """The settings that the base model came with, as they were if they name all tokens that end a text."""
    source, named = tokenizer.settings_folder / GENERATION, tokenizer.ends_in(GENERATION)
    if {*ends} <= {*named, *tokenizer.end_ids}:
        shutil.copyfile(source, path)
        return
    settings = json.loads(source.read_text(encoding="utf-8"))
    settings["eos_token_id"] = list(dict.fromkeys([*named, *tokenizer.end_ids, *ends]))
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def token_ids_of(tokenizer: Tokenizer, causal: bool, ends: Sequence[int] = ()) -> dict[str, int | list[int] | None]:
    """The ids of special tokens by their names in transformers, for config.json. Several can end a text of a GPT."""
    ids = {name: getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad", "mask")}
    if not causal:
        return ids | {"cls": tokenizer.bos_id, "sep": tokenizer.eos_id}
    named = tokenizer.ends_in("config.json") or list(tokenizer.end_ids)
    named += [token for token in ends if token not in (*named, *tokenizer.end_ids)]
    return ids | ({"eos": named} if len(named) > 1 else {})


def _merged(
    options: ExportOptions,
) -> tuple[ModelConfig, TaskConfig | None, Callable[[str], torch.Tensor], Tokenizer, Sequence[int]]:
    """Configuration, task, a function from names to tensors, tokenizer, and the tokens that end an output, of a
    fine-tuned model, adapters merged."""
    found = open_finetuned(options.checkpoint, torch.device("cpu"), options.tokenizer)
    merge(found.model)
    parameters, task = dict(found.model.named_parameters()), getattr(found.model, "task", None)
    ends = end_ids(task_settings(found.config), found.tokenizer) if found.kind.head is None else ()
    return found.model.config, task, lambda name: parameters[name], found.tokenizer, ends


def export_adapter(options: ExportOptions) -> None:
    """Writes the adapter of a fine-tuned model as a folder of the peft library, with the tokenizer.

    Raises:
        ValueError: the run was trained with a method that peft does not have, or the folder exists.
    """
    found = open_finetuned(options.checkpoint, torch.device("cpu"), options.tokenizer)
    method = found.config.method
    if method.kind not in ("lora", "adalora", "ia3", *TYPES):
        raise ValueError(f"{found.folder} was trained with method {method.kind}, which the peft library does not have")
    task = getattr(found.model, "task", None)
    head = {} if task is None else {f"head.{name}": p for name, p in found.model.head.named_parameters()}
    with new_folder(options.output) as temporary:
        found.tokenizer.save(temporary)
        (temporary / "config.json").unlink(missing_ok=True)  # the tokenizer's; peft would read it as its own
        base, family = found.config.init.model, options.family
        if method.kind in TYPES:
            write_prompts(temporary, found.model, method.kind, head, base=base, family=family)
            return
        added = additions(found.model)
        alpha: float | None = method.lora_alpha
        if method.kind == "adalora":
            added, alpha = as_lora(added, method.lora_alpha / method.init_r), None
        write_adapter(temporary, found.model.config, task, added, head, base=base, alpha=alpha, family=family)
