"""Opening a run, a checkpoint or a Hugging Face folder to use the model, in one process."""

from pathlib import Path

import torch

from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.config.aliases import modernize_manifest
from ingot.launcher.loading.base_model import is_finetuned
from ingot.launcher.loading.checkpoint_config import model_config
from ingot.launcher.loading.finetuned_model import open_finetuned
from ingot.launcher.loading.tokenizer import open_tokenizer
from ingot.model.config import ModelConfig
from ingot.model.huggingface.load import load
from ingot.model.transformer import LanguageModel
from ingot.parallel.checkpoint import CheckpointError, open_newest, read_tensor


def load_for_inference(path: str, tokenizer: str | None, device: torch.device) -> tuple[LanguageModel, Tokenizer]:
    """The model, fp32 and in evaluation mode, and its tokenizer.

    Args:
        path: a run, whose newest intact checkpoint is used (of a fine-tuning run the best), a checkpoint, or a Hugging
            Face folder.
        tokenizer: its folder; None for the one in the run's or the Hugging Face folder.

    Raises:
        ValueError: there is no intact checkpoint, it has too many or too few tensors, or the tokenizer is another.
    """
    if (Path(path) / "config.json").is_file():
        model = load(path, device=device)
        if not isinstance(model, LanguageModel):
            raise ValueError(f"{path} holds a model with a {model.task.kind} head, which is not a language model")
        found = load_tokenizer(tokenizer if tokenizer is not None else path)
        found.settings_folder = Path(path)
        if found.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"tokenizer {found.folder} has {found.vocab_size} ids, and the model in {path} knows "
                f"{model.config.vocab_size}; name its own with --tokenizer"
            )
        return model, found
    if is_finetuned(path):
        opened = open_finetuned(path, device, tokenizer)
        if not isinstance(opened.model, LanguageModel):
            raise ValueError(f"{path} holds a model for {opened.kind.name}; use launcher/predict.py")
        return opened.model, opened.tokenizer
    folder, manifest, config = open_checkpoint(path)
    with torch.device("meta"):
        model = LanguageModel(config)
    model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read_tensor(folder, manifest, f"model/{name}"))
    return model.eval(), open_tokenizer(folder, manifest, tokenizer)


def open_checkpoint(path: str) -> tuple[Path, dict, ModelConfig]:
    """The folder of a checkpoint, its manifest, and the configuration of its model.

    Raises:
        ValueError: there is no intact checkpoint, or it has too many or too few tensors.
    """
    folder, stored = open_newest(Path(path))
    manifest = modernize_manifest(stored, folder)
    config = model_config(folder, manifest)
    with torch.device("meta"):
        parameters = {f"model/{name}" for name, _ in LanguageModel(config).named_parameters()}
    saved = {name for name in manifest["tensors"] if name.startswith("model/")}
    if saved != parameters:
        odd = sorted(saved ^ parameters)
        raise CheckpointError(f"checkpoint {folder} does not match its own configuration; only on one side: {odd[:5]}")
    return folder, manifest, config
