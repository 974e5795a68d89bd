"""The tokenizer of a preparation: an existing one copied, or one trained on a sample of the training split."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from ingot.data.sources.documents import TRAIN, hash64
from ingot.data.sources.file_parts import read_documents
from ingot.data.tokenizers.tokenizer import Tokenizer, hash_files, load_tokenizer, tokenizer_files
from ingot.data.tokenizers.training import train_sentencepiece
from ingot.data.writing.pieces import PreparationPlan
from ingot.data.writing.writer import write_json
from ingot.launcher.config.prepare import PrepareOptions

TOKENIZER_MARK = "tokenizer.json"


def make_tokenizer(
    options: PrepareOptions, plan: PreparationPlan, folder: Path, existing: Tokenizer | None
) -> Tokenizer:
    """The tokenizer in the partial folder: what a killed run left there, a copy of an existing one, or a new one."""
    place = folder / "tokenizer"
    if not tokenizer_is_there(folder, plan):
        shutil.rmtree(place, ignore_errors=True)
        wanted = options.tokenizer
        if existing:
            existing.save(place)
        else:
            print(f"training a {wanted.model_type} vocabulary of {wanted.vocab_size:,}", file=sys.stderr)
            texts = vocabulary_texts(plan, wanted.sample_bytes)
            train_sentencepiece(
                texts, place, wanted.vocab_size, wanted.model_type, wanted.sample_bytes, wanted.fill_in_the_middle
            )
        mark = {"fingerprint": plan.fingerprint, "sha256": hash_files(tokenizer_files(place))}
        write_json(folder / TOKENIZER_MARK, mark)
    return load_tokenizer(place)


def tokenizer_is_there(folder: Path, plan: PreparationPlan) -> bool:
    try:
        mark = json.loads((folder / TOKENIZER_MARK).read_bytes())
    except (OSError, ValueError):
        return False
    same = mark.get("sha256") == hash_files(tokenizer_files(folder / "tokenizer"))
    return same and mark.get("fingerprint") == plan.fingerprint


def vocabulary_texts(plan: PreparationPlan, sample_bytes: int) -> Iterator[str]:
    """Texts of the training split for the vocabulary, in the order of the corpus, which is a fair one for text files.

    Where sources hold records and are more than `sample_bytes` bytes in all, each gives its share, from its beginning.
    """
    sources = [source for piece in plan.pieces for source in piece]
    share = sample_bytes / max(1, sum(source.size for source in sources))
    if all(source.kind == "text" for source in sources):
        share = 1.0
    for source in sources:
        if share < 1 and source.kind == "text" and hash64("vocabulary", source.name) / 2**64 >= share:
            continue
        taken = 0
        for document in read_documents([source], refuse_bad=plan.refuse_bad):
            if source.split_of(document, plan.validation_fraction) != TRAIN:
                continue
            yield document.text
            taken += len(document.text.encode())
            if share < 1 and taken >= source.size * share:
                break
