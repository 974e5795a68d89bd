"""From what a user names as a tokenizer to a folder that can be opened: a name on the hub, a file, or bare files."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_SECONDS = 10
BARE = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"), ("vocab.txt",))
"""Files that are a tokenizer and do not say of which kind: byte-level BPE under two pairs of names, and WordPiece."""
TOLD = ("tokenizer.json", "tokenizer_config.json", "config.json", "tokenizer.model", "spiece.model")
"""Files of which one says how the tokenizer is opened."""


def tokenizer_folder(source: str | Path, wanted: Sequence[str]) -> AbstractContextManager[str] | None:
    """A temporary folder with the tokenizer that is named, to be kept as long as the tokenizer is; None if `source` is
    such a folder itself.

    Args:
        source: a folder, a file, or a name on the hub.
        wanted: names of a tokenizer's files, for the hub.

    Raises:
        ValueError: there is no such thing, or it does not say what tokenizer it is.
    """
    path = Path(source)
    if not path.exists():
        if isinstance(source, Path) or not HUB_NAME.fullmatch(source):
            raise ValueError(f"tokenizer {source} does not exist: it is no folder or file")
        found = _download(source, [*wanted, *(name for names in BARE for name in names)])
        return tokenizer_folder(found, wanted) or nullcontext(str(found))
    if path.is_file():
        if path.name.endswith(".model"):
            return _copied(path, "tokenizer.model")
        if path.name == "tokenizer.json":
            return nullcontext(str(path.parent)) if (path.parent / TOLD[1]).is_file() else _copied(path, path.name)
        if not any(path.name in names for names in BARE):
            raise ValueError(
                f"{path} is no file that a tokenizer is known by; name its folder, or one of tokenizer.json, *.model, "
                f"{', '.join(name for names in BARE for name in names)}"
            )
        return _from_bare_files(path.parent)
    bare = any((path / name).is_file() for names in BARE for name in names)
    return _from_bare_files(path) if bare and not any((path / name).is_file() for name in TOLD) else None


def _download(name: str, wanted: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*wanted, "*.jinja"], etag_timeout=HUB_SECONDS))
    except Exception as error:  # the library raises many types of errors, which all mean that the download failed
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"tokenizer {name} does not exist: it is no folder or file, and cannot be downloaded from the hub: {reason}"
        ) from error


def _copied(path: Path, name: str) -> tempfile.TemporaryDirectory[str]:
    folder = _new_folder(path)
    shutil.copyfile(path, Path(folder.name) / name)
    return folder


def _new_folder(path: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix=f"tokenizer-of-{path.name}-")


def _from_bare_files(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder that transformers opens, of bare files."""
    for names in BARE:
        missing = [name for name in names if not (folder / name).is_file()]
        if not missing:
            return _with_class(folder, *(folder / name for name in names))
        if len(missing) < len(names):
            (there,) = {*names} - {*missing}
            raise ValueError(f"{folder} has {there} and lacks {missing[0]}, which belongs to it; copy it there")
    raise AssertionError("a folder without bare files")


def _with_class(folder: Path, vocabulary: Path, merges: Path | None = None) -> tempfile.TemporaryDirectory[str]:
    from transformers.models.bert.tokenization_bert import BertTokenizer
    from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer
    from transformers.models.roberta.tokenization_roberta import RobertaTokenizer

    made: Any
    remedy = "write a tokenizer_config.json with its tokenizer_class beside it, or name its tokenizer.json"
    try:
        text = vocabulary.read_text(encoding="utf-8")
        pieces = set(text.splitlines() if merges is None else json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{vocabulary} is not a vocabulary: {error}") from None
    given: dict[str, Any] = {"vocab": str(vocabulary), **({} if merges is None else {"merges": str(merges)})}
    if merges is None:
        if not {"[UNK]", "[CLS]", "[SEP]"} <= pieces:
            raise ValueError(f"{vocabulary} lacks [UNK], [CLS] or [SEP], so it is not one of BERT's; {remedy}")
        # A vocabulary with capital letters is of a model that keeps them.
        cased = any(piece != piece.lower() for piece in pieces if not re.fullmatch(r"\[.*\]", piece))
        made = BertTokenizer(**given, do_lower_case=not cased)
    elif any(piece.endswith("</w>") for piece in pieces):
        raise ValueError(f"{vocabulary} marks the ends of words (</w>), as several kinds of tokenizers do; {remedy}")
    elif "<|endoftext|>" in pieces:
        made = GPT2Tokenizer(**given)
    elif {"<s>", "</s>", "<mask>"} <= pieces:
        made = RobertaTokenizer(**given)
    else:
        raise ValueError(
            f"{vocabulary} has neither GPT-2's <|endoftext|> nor RoBERTa's <s>, </s> and <mask>, so its kind is "
            f"unknown; {remedy}"
        )
    target = _new_folder(folder)
    made.save_pretrained(target.name)
    return target
