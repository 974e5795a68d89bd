"""Training a SentencePiece vocabulary on a sample of text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import FIM_PIECES, SPECIAL_PIECES, Tokenizer

# Longer lines are split, for training only: the trainer drops lines above its sentence limit.
MAX_TRAINING_LINE = 2000
# The result depends on it (the model file records it, and the sums of unigram models depend on it). So it is fixed, and
# not the number of cores.
TRAINING_THREADS = 2


def train_sentencepiece(
    texts: Iterable[str],
    folder: str | Path,
    vocab_size: int,
    model_type: str = "bpe",
    sample_bytes: int = 16_000_000,
    fill_in_the_middle: bool = False,
) -> Tokenizer:
    """Train a vocabulary on the first `sample_bytes` bytes of `texts`, write `folder`/tokenizer.model, and open it.

    Bytes without a piece are encoded with 256 byte pieces. Whitespace is kept exactly: a run of spaces can be one
    piece, and newline and tab are pieces of their own. The same texts give the same file.

    Args:
        fill_in_the_middle: add the three special tokens of this objective.

    Raises:
        ValueError: `vocab_size` is too large for the texts (the message names the largest possible one), or too small
            for their characters.
    """
    import sentencepiece

    if model_type not in ("bpe", "unigram"):
        raise ValueError(f"tokenizer model type {model_type!r} is unknown: choose bpe or unigram")
    fim = list(FIM_PIECES) if fill_in_the_middle else []
    smallest = len(SPECIAL_PIECES) + len(fim) + 256 + 2
    if vocab_size < smallest:
        raise ValueError(
            f"a vocabulary of {vocab_size} is too small: special, byte and whitespace pieces alone are {smallest}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = _Buffer()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_training_lines(texts, sample_bytes),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n", "\t"],
            control_symbols=["<mask>", *fim],  # a control symbol is never encoded from text
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece="<pad>",
            unk_piece="<unk>",
            bos_piece="<s>",
            eos_piece="</s>",
            max_sentence_length=MAX_TRAINING_LINE * 4,
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_explain(str(error), vocab_size)) from error
    (folder / "tokenizer.model").write_bytes(model.content)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pieces()[: len(SPECIAL_PIECES)] == list(SPECIAL_PIECES)
    return tokenizer


class _Buffer:
    """Gets the serialized model, which is written to disk after training has succeeded."""

    content = b""

    def write(self, data: bytes) -> None:
        self.content += data


def _training_lines(texts: Iterable[str], sample_bytes: int) -> Iterator[str]:
    """The parts of `texts` between newlines and tabs, up to `sample_bytes` bytes.

    Newline and tab are pieces of their own, and the trainer drops sentences that contain a tab."""
    seen = 0
    for text in texts:
        for line in re.split("[\n\t]+", text):
            for begin in range(0, len(line), MAX_TRAINING_LINE):
                if seen >= sample_bytes:
                    return
                part = line[begin : begin + MAX_TRAINING_LINE]
                seen += len(part.encode())
                yield part


def _explain(error: str, vocab_size: int) -> str:
    if match := re.search(r"value <= (\d+)", error):
        return (
            f"a vocabulary of {vocab_size} is too large for this text: the largest possible value is {match[1]} "
            f"(or give more text)"
        )
    if match := re.search(r"required_chars\. \d+ vs (\d+)", error):
        return (
            f"a vocabulary of {vocab_size} cannot hold the characters of this text: the smallest possible value is "
            f"{match[1]}"
        )
    return f"the tokenizer could not be trained: {error.strip()}"
