"""What launcher/export.py can be told."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class ExportOptions:
    """What to write, and where."""

    checkpoint: str
    """A run folder (its newest sound checkpoint is taken, of a fine-tuning run its best) or a checkpoint folder."""
    output: str
    """The new folder. It must not exist, or be empty."""
    family: str | None = None
    """gpt2, llama, qwen2, qwen3, bert, roberta or modernbert; by default the first that can express the model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in the files."""
    max_shard_bytes: int = 5_000_000_000
    """Largest file of weights; a larger model is written in several."""
    tokenizer: str | None = None
    """Tokenizer folder; by default the one in the run's folder."""
    adapter: bool = False
    """Of a run with method lora, adalora, ia3, prompt, p_tuning or prefix, write what it has learned alone, for the
    peft library, instead of the whole model with it merged."""
    exact_tokenizer: bool = True
    """Refuse a tokenizer whose tokenizer.json gives other ids for some text, as unigram models do for long runs of one
    character, where several ways to cut them are equally likely. False only warns."""
