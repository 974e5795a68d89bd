"""The tokenizer of a new corpus: a copy of an existing one, or one trained on a sample of the training split."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from ingot.data.sources.documents import TRAIN, hash64
from ingot.data.sources.file_parts import read_documents
from ingot.data.tokenizers.identity import hash_files
from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer, tokenizer_files
from ingot.data.tokenizers.training import train_sentencepiece
from ingot.data.writing.pieces import PreparationPlan
from ingot.data.writing.writer import write_json
from ingot.launcher.config.prepare import PrepareOptions

TOKENIZER_MARKER = "tokenizer.json"


def make_tokenizer(
    options: PrepareOptions, plan: PreparationPlan, folder: Path, existing: Tokenizer | None
) -> Tokenizer:
    """The tokenizer in the partial folder: the one of a killed run, a copy of an existing one, or a new one."""
    target = folder / "tokenizer"
    if not tokenizer_is_ready(folder, plan):
        shutil.rmtree(target, ignore_errors=True)
        wanted = options.tokenizer
        if existing:
            existing.save(target)
        else:
            print(f"training a {wanted.model_type} vocabulary of {wanted.vocab_size:,}", file=sys.stderr)
            texts = vocabulary_texts(plan, wanted.sample_bytes)
            train_sentencepiece(
                texts, target, wanted.vocab_size, wanted.model_type, wanted.sample_bytes, wanted.fill_in_the_middle
            )
        marker = {"fingerprint": plan.fingerprint, "sha256": hash_files(tokenizer_files(target))}
        write_json(folder / TOKENIZER_MARKER, marker)
    return load_tokenizer(target)


def tokenizer_is_ready(folder: Path, plan: PreparationPlan) -> bool:
    """Whether the partial folder has the complete tokenizer of this plan."""
    try:
        marker = json.loads((folder / TOKENIZER_MARKER).read_bytes())
    except (OSError, ValueError):
        return False
    same = marker.get("sha256") == hash_files(tokenizer_files(folder / "tokenizer"))
    return same and marker.get("fingerprint") == plan.fingerprint


def vocabulary_texts(plan: PreparationPlan, sample_bytes: int) -> Iterator[str]:
    """Texts of the training split for the vocabulary, in the order of the corpus, which is a fair one for text files.

    If there are files of records, and more than `sample_bytes` bytes in all, then each part gives the same fraction of
    its bytes, from its beginning. Text files are then taken or skipped as a whole, with that fraction as probability.
    """
    parts = [part for piece in plan.pieces for part in piece]
    fraction = sample_bytes / max(1, sum(part.size for part in parts))
    if all(part.kind == "text" for part in parts):
        fraction = 1.0
    for part in parts:
        if fraction < 1 and part.kind == "text" and hash64("vocabulary", part.name) / 2**64 >= fraction:
            continue
        taken = 0
        for document in read_documents([part], refuse_bad=plan.refuse_bad):
            if part.split_of(document, plan.validation_fraction) != TRAIN:
                continue
            yield document.text
            taken += len(document.text.encode())
            if fraction < 1 and taken >= part.size * fraction:
                break
