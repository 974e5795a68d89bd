"""Options of launcher/export.py."""

from dataclasses import dataclass
from typing import Literal

from ingot.launcher.config.schema.types import PositiveInt


@dataclass(frozen=True)
class ExportOptions:
    """The checkpoint, and the folder to write."""

    checkpoint: str
    """A run folder (the newest intact checkpoint is used, for a fine-tuning run the best) or a checkpoint folder."""
    output: str
    """The new folder. It must not exist, or be empty."""
    family: str | None = None
    """gpt2, llama, qwen2, qwen3, bert, roberta or modernbert; by default the first family that can express the
    model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in the files."""
    max_shard_bytes: PositiveInt = 5_000_000_000
    """Maximum size of one file of weights. A larger model is written as several files."""
    tokenizer: str | None = None
    """Tokenizer folder; by default the one in the run's folder."""
    adapter: bool = False
    """For a run with a method of the peft library: write only the adapter, as peft's own files, instead of the whole
    model with the adapter merged into it."""
    exact_tokenizer: bool = True
    """Refuse a tokenizer whose tokenizer.json would give other ids for some text. This happens with unigram models, for
    long runs of one character. false only warns."""
