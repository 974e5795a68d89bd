"""Opening what a fine-tuning run has made: the model with its head and additions, in one process."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.config.aliases import modernize_manifest
from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.values import construct
from ingot.launcher.loading import peft_methods
from ingot.launcher.loading.base_model import is_finetuned, newest_or_best, open_start
from ingot.launcher.loading.tokenizer import open_tokenizer
from ingot.model.config import ModelConfig
from ingot.model.finetuning.adapters import WithAdapter
from ingot.model.finetuning.soft_prompts import PromptedEmbedding
from ingot.model.finetuning.task_model import TaskConfig, TaskModel
from ingot.model.transformer import LanguageModel
from ingot.parallel.checkpoint import CheckpointError, read_manifest, read_tensor


@dataclass
class Finetuned:
    """A fine-tuned model, fp32 and in evaluation mode, and what it was made from."""

    folder: Path
    model: LanguageModel | TaskModel
    tokenizer: Tokenizer
    config: FinetuneConfig
    labels: list[str]


def open_finetuned(path: str, device: torch.device, tokenizer: str | None = None) -> Finetuned:
    """
    Args:
        path: a run, of which the best checkpoint is taken, or the newest where none was scored; or a checkpoint.

    Raises:
        ValueError: nothing there, no fine-tuned model, or its start is gone where only additions were trained.
    """
    folder = newest_or_best(path)
    manifest = modernize_manifest(read_manifest(folder), folder)
    if not is_finetuned(path):
        raise CheckpointError(f"{folder} is no checkpoint of a fine-tuning run")
    config = construct(FinetuneConfig, manifest["config"])
    task = None if manifest["task"] is None else TaskConfig(**manifest["task"])
    with torch.device("meta"):
        body = ModelConfig(**manifest["model"])
        model = LanguageModel(body) if task is None else TaskModel(body, task)
    peft_methods.apply(config.method, model, has_head=task is not None)
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    start = None
    if any(not p.requires_grad for p in model.parameters()):
        try:
            start = open_start(
                config.init.model,
                config.task.kind,
                manifest["labels"],
                seed=config.run.seed,
                weights=config.init.pretrained,
                layers=config.init.keep_layers,
            )
        except (ValueError, OSError) as error:
            raise CheckpointError(
                f"{folder} holds what {config.method.kind} has trained, and needs the model that it began with: {error}"
            ) from None
    model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in learned:
                parameter.copy_(read_tensor(folder, manifest, f"model/{name}"))
            else:
                shape = tuple(parameter.shape)
                parameter.copy_(start.part(peft_methods.plain_name(name), (0,) * len(shape), shape))
    return Finetuned(folder, model.eval(), open_tokenizer(folder, manifest, tokenizer), config, manifest["labels"])


def additions(model: nn.Module) -> dict[str, Tensor]:
    """What a method has added to the model, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if peft_methods.is_added(name)}


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Takes the additions into the matrices that they were added to; the model computes the same without them.

    Raises:
        ValueError: bottlenecks, which are no part of a matrix.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, WithAdapter | PromptedEmbedding) for module in model.modules()):
        raise ValueError("adapters and learned tokens are no part of the model's matrices and cannot be merged")
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())


def quantize(model: nn.Module, how: str) -> None:
    """Turns the matrices of the blocks into int8 by torchao: `weights` alone, which are widened where they are used, or
    `dynamic`, with activations that are rounded to int8 as they come."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    chosen = Int8WeightOnlyConfig() if how == "weights" else Int8DynamicActivationInt8WeightConfig()
    quantize_(model.blocks, chosen)


def size_of(model: nn.Module) -> int:
    """Bytes of the parameters as they lie in memory."""
    return sum(_bytes(parameter) for parameter in model.parameters())


def _bytes(tensor: Tensor) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    names, _ = tensor.__tensor_flatten__()
    return sum(_bytes(getattr(tensor, name)) for name in names)
