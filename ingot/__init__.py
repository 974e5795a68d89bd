"""Ingot pretrains GPT and BERT models from scratch on any number of devices, and fine-tunes them.

    model, tokenizer = ingot.load("runs/demo")          # a run, a checkpoint or a Hugging Face folder
    ingot.generate(model, tokenizer, "import os")       # text
    ingot.save(model, tokenizer, "exported")            # a folder that transformers opens
    ingot.read_corpus("corpora/demo", sequence_length=128, batch_size=8)
    ingot.Training("configs/demo.yaml").step()          # one optimizer step

Importing it is quick; torch is imported with the first of these names.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not (Path(__file__).parent / "model").is_dir():  # a clone, where the rooms stand beside this folder
    __path__.append(str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from ingot.api import generate, load, read_corpus, save
    from ingot.launcher.training.interactive import Training

__all__ = ["Training", "generate", "load", "read_corpus", "save"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ingot' has no attribute {name!r}")
    module = "ingot.launcher.training.interactive" if name == "Training" else "ingot.api"
    return getattr(importlib.import_module(module), name)
