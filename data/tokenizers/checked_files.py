"""Tokenizer files that may come from anybody: what could fill the memory is refused before a library opens them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ingot.safe_files import read_json

MAX_FILE_BYTES = 2**28
MAX_GROWTH = 1000
"""A text may become so many times as long before it is divided into tokens (or after their texts are joined)."""
MAX_IDS = 10**7


def check_files(files: Iterable[Path]) -> None:
    """Checks the JSON files of a tokenizer.

    Raises:
        ValueError: a file is no JSON or too large, an id is too large, or the steps of a tokenizer.json could make a
            text longer more than MAX_GROWTH times: forty times "a" -> "aa" is all the memory that there is.
    """
    for file in files:
        if file.suffix != ".json":
            continue
        values = read_json(file, max_bytes=MAX_FILE_BYTES)
        if file.name == "tokenizer.json" and isinstance(values, dict):
            _check_tokenizer(file, values)


@contextmanager
def library_errors(folder: Path) -> Iterator[None]:
    """Turns a panic of the tokenizers library, which is no Exception, into a ValueError.

    It panics where a regular expression of the tokenizer tries too many ways to match a text, for one.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the tokenizer in {folder} cannot be used, its library stops with: {error}") from None


def _check_tokenizer(file: Path, values: dict) -> None:
    for steps in (("normalizer", "pre_tokenizer"), ("decoder",)):
        growth = 1.0
        for step in steps:
            growth *= _growth(values.get(step))
        if growth > MAX_GROWTH:
            raise ValueError(
                f"{file}: its {' and '.join(steps)} can make a text {growth:.3g} times as long; at most {MAX_GROWTH} "
                "is allowed: use another tokenizer"
            )
    model, added = values.get("model"), values.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = [*vocab.values()] if isinstance(vocab, dict) else []
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    for number in ids:
        if not isinstance(number, int) or not 0 <= number < MAX_IDS:
            raise ValueError(f"{file}: {str(number)[:80]!r} is not a token id")


def _growth(step: object) -> float:
    """How many times as long a text can become in a step, about: what adds a constant counts as a factor."""
    if not isinstance(step, dict):
        return 1.0
    growth = 1.0
    for key in ("normalizers", "pretokenizers", "decoders"):
        parts = step.get(key)
        for part in parts if isinstance(parts, list) else []:
            growth *= _growth(part)
    if step.get("type") == "ByteLevel":
        return growth * 2
    if step.get("type") == "Replace":
        pattern, content = step.get("pattern"), step.get("content")
        plain = pattern.get("String") if isinstance(pattern, dict) else None
        length = len(content) if isinstance(content, str) else 0
        return growth * (max(1.0, length / len(plain)) if isinstance(plain, str) and plain else 1.0 + length)
    if step.get("type") == "Prepend":
        return growth * (1 + len(str(step.get("prepend"))))
    return growth
