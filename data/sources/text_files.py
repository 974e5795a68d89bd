"""The text of a file, and what JSON in it spells, or one message that says where it is neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_text(path: str | Path, *, may_be_empty: bool = False) -> str:
    """The text of a UTF-8 file without its byte order mark, line ends as they are.

    Raises:
        ValueError: not UTF-8, or nothing in it.
        OSError: a file that cannot be read.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); convert it, for example with iconv -t utf-8") from error
    if not may_be_empty and not text.strip():
        raise ValueError(f"{path} is empty")
    return text


def parse_json(text: str, place: str) -> Any:
    """The value that `text` spells.

    Raises:
        ValueError: no JSON, or half a surrogate pair, which no tokenizer takes; the message begins with `place`.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place} has a text that is not valid Unicode: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not valid JSON: {error}") from error
    return value
