"""Opening a run or checkpoint to use the model, in one process."""

from pathlib import Path

import torch

from data.tokenizer import Tokenizer, load_tokenizer
from model.config import ModelConfig
from model.transformer import LanguageModel
from parallel.checkpoint import CheckpointError, read_manifest, read_tensor, resolve


def load_for_inference(path: str, tokenizer: str | None, device: torch.device) -> tuple[LanguageModel, Tokenizer]:
    """The model, fp32 and in evaluation mode, and its tokenizer.

    Args:
        path: a run folder, whose newest sound checkpoint is taken, or a checkpoint folder.
        tokenizer: its folder; None for the one in the run's folder.

    Raises:
        ValueError: no sound checkpoint there, tensors that the model does not have or lacks, or another tokenizer.
    """
    folder = resolve(Path(path))
    manifest = read_manifest(folder)
    with torch.device("meta"):
        model = LanguageModel(ModelConfig(**manifest["config"]["model"]))
    model.to_empty(device=device)
    parameters = {f"model/{name}": parameter for name, parameter in model.named_parameters()}
    saved = {name for name in manifest["tensors"] if name.startswith("model/")}
    if saved != parameters.keys():
        odd = sorted(saved ^ parameters.keys())
        raise CheckpointError(f"checkpoint {folder} does not fit its own configuration; on one side only: {odd[:5]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(read_tensor(folder, manifest, name))
    found = load_tokenizer(tokenizer if tokenizer is not None else folder.parents[1] / "tokenizer")
    if found.sha256 != manifest["tokenizer_sha256"]:
        raise ValueError(
            f"tokenizer {found.folder} is not the one that {folder} was trained with; name that one with --tokenizer"
        )
    return model.eval(), found
