"""Reading a text file, and parsing JSON, with error messages that say where the problem is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_text(path: str | Path, *, may_be_empty: bool = False) -> str:
    """The text of a UTF-8 file, without its byte order mark. Line ends are not changed.

    Raises:
        ValueError: the file is not UTF-8, or has no text.
        OSError: the file cannot be read.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); convert it, for example with iconv -t utf-8") from error
    if not may_be_empty and not text.strip():
        raise ValueError(f"{path} is empty")
    return text


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON, or half a surrogate pair, which no tokenizer accepts. The message begins with `where`.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} has a text that is not valid Unicode: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from error
    return value
