"""What a tokenizer is: a hash of what it encodes, which does not depend on which files lie beside it.

docs/corpus-format.md has the same formula for jq and sha256sum.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ingot.data.tokenizers.checked_files import MAX_FILE_BYTES
from ingot.safe_files import read_bytes

UNIT = 2**20
OFFSET = 0.3
"""Numbers are hashed as whole multiples of 1 / UNIT, because programs print and read the same fraction differently. The
offset keeps scores, which are fp32 numbers and so often multiples themselves, away from where rounding changes."""


def encoding_hash(settings: dict[str, Any], bos_id: int | None, eos_id: int | None, mask_id: int | None) -> str:
    """sha256 of how a text becomes ids, in hex.

    It is taken over one line of JSON, as `jq -caS` prints it, of what decides about ids: added_tokens, model,
    normalizer and pre_tokenizer of `settings`, and three special tokens. What is null or false is left out, and a merge
    of BPE is its two parts with a space between: files of different versions differ in both.

    Args:
        settings: the content of a tokenizer.json.
    """
    model = dict(settings["model"])
    model["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or ()]
    parts = {key: settings.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer")}
    return _hash_of({**parts, "model": model, "bos": bos_id, "eos": eos_id, "mask": mask_id})


def model_file_hash(path: Path, bos_id: int | None, eos_id: int | None, mask_id: int | None) -> str:
    """The same of a SentencePiece model that no tokenizer.json can express."""
    name = hashlib.sha256(read_bytes(path, max_bytes=MAX_FILE_BYTES)).hexdigest()
    return _hash_of({"tokenizer.model": name, "bos": bos_id, "eos": eos_id, "mask": mask_id})


def whole_hash(encoding: str, chat_template: str) -> str:
    """sha256 of the hash of the encoding, a newline, and the chat template."""
    return hashlib.sha256(f"{encoding}\n{chat_template}".encode()).hexdigest()


def hash_files(files: Iterable[Path], more: Mapping[str, bytes] | None = None) -> str:
    """sha256 over names and contents in the order of the names, in hex. The folder of the files does not matter.

    Args:
        more: contents of further files, by their names.
    """
    contents = {file.name: partial(read_bytes, file, max_bytes=MAX_FILE_BYTES) for file in files} | {
        name: partial(bytes, content) for name, content in (more or {}).items()
    }
    digest = hashlib.sha256()
    for name, read in sorted(contents.items()):
        content = read()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _hash_of(values: dict[str, Any]) -> str:
    line = json.dumps(_plain(values), sort_keys=True, separators=(",", ":")) + "\n"
    return hashlib.sha256(line.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None and inner is not False}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return math.floor(value * UNIT + OFFSET)
    return value
