"""Opening the result of a fine-tuning run: the model with its head and added parameters, in one process."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.config.aliases import modernize_manifest
from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.loading import peft_methods
from ingot.launcher.loading.base_model import newest_or_best, open_base_model
from ingot.launcher.loading.checkpoint_config import model_config, read_config
from ingot.launcher.loading.tokenizer import open_tokenizer
from ingot.launcher.tasks.registry import task_kind
from ingot.launcher.tasks.task_kind import TaskKind
from ingot.model.finetuning.adapters import AdaptedLinear
from ingot.model.finetuning.soft_prompts import PromptedEmbedding
from ingot.model.finetuning.task_model import TaskConfig, TaskModel
from ingot.model.transformer import LanguageModel
from ingot.packages import how_to_install
from ingot.parallel.checkpoint import CheckpointError, read_tensor
from ingot.parallel.checkpoint.digest import digest
from ingot.parallel.checkpoint.manifest import check_frozen
from ingot.parallel.tensor_shards import whole_shard


@dataclass
class Finetuned:
    """A fine-tuned model, fp32 and in evaluation mode, and what it was trained with."""

    folder: Path
    model: LanguageModel | TaskModel
    tokenizer: Tokenizer
    config: FinetuneConfig
    kind: TaskKind
    labels: list[str]


def open_finetuned(path: str, device: torch.device, tokenizer: str | None = None) -> Finetuned:
    """
    Args:
        path: a run, of which the best checkpoint is used, or the newest if none was scored; or a checkpoint.

    Raises:
        ValueError: there is no fine-tuned model, or only added parameters were trained and the base model is gone or is
            another one.
    """
    folder, stored = newest_or_best(path)
    manifest = modernize_manifest(stored, folder)
    if "labels" not in manifest:
        raise CheckpointError(f"{folder} is not a checkpoint of a fine-tuning run")
    config = read_config(FinetuneConfig, manifest.get("config"), folder)
    kind = task_kind(config.task.kind)
    task = None if manifest.get("task") is None else read_config(TaskConfig, manifest["task"], folder)
    with torch.device("meta"):
        body = model_config(folder, manifest)
        model = LanguageModel(body) if task is None else TaskModel(body, task)
    peft_methods.apply(config.method, model, has_head=task is not None)
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    base = None
    if any(not p.requires_grad for p in model.parameters()):
        try:
            base = open_base_model(
                config.init.model,
                kind,
                manifest["labels"],
                seed=config.run.seed,
                pretrained=config.init.pretrained,
                layers=config.init.keep_layers,
            )
        except (ValueError, OSError) as error:
            raise CheckpointError(
                f"{folder} holds only the parameters that {config.method.kind} trained, and needs the base model: "
                f"{error}"
            ) from None
    model.to_empty(device=device)
    digests = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in learned:
                parameter.copy_(read_tensor(folder, manifest, f"model/{name}"))
            else:
                assert base is not None
                shape = tuple(parameter.shape)
                values = base.part(peft_methods.plain_name(name), (0,) * len(shape), shape).float()
                digests[f"model/{name}"] = f"{digest(whole_shard(f'model/{name}', values)):016x}"
                parameter.copy_(values)
    check_frozen(folder, manifest, digests)
    found = open_tokenizer(folder, manifest, tokenizer)
    return Finetuned(folder, model.eval(), found, config, kind, manifest["labels"])


def additions(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that a method has added to the model, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if peft_methods.is_added(name)}


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Merges added parameters into the matrices that they belong to. The model computes the same without them.

    Raises:
        ValueError: adapters or virtual tokens, which do not belong to a matrix.
    """
    if any(isinstance(module, AdaptedLinear | PromptedEmbedding) for module in model.modules()):
        raise ValueError("adapters and virtual tokens are not part of a matrix of the model and cannot be merged")
    if not additions(model):
        return  # peft takes seconds to import, and warns of what it finds
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())


def quantize(model: nn.Module, how: str) -> None:
    """Converts the matrices of the blocks to int8 with torchao: `weights` only, which are converted back where they are
    used, or `dynamic`, which also quantizes the activations of each token.

    Raises:
        ValueError: torchao is not installed.
    """
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise ValueError(f"int8 {how} needs the package torchao: run {how_to_install('torchao')}") from None

    chosen = Int8WeightOnlyConfig() if how == "weights" else Int8DynamicActivationInt8WeightConfig()
    quantize_(model.blocks, chosen)


def size_of(model: nn.Module) -> int:
    """Bytes of the parameters in memory."""
    return sum(_bytes(parameter) for parameter in model.parameters())


def _bytes(tensor: Tensor) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    names, _ = tensor.__tensor_flatten__()
    return sum(_bytes(getattr(tensor, name)) for name in names)
