"""Divides text into documents: at a separator, and where a document would be longer than the longest that is allowed.

A document is tokenized as a whole, which takes up to 46 times its size. So the longest one bounds the memory of
everything that follows. Nothing of the text is lost but the separators.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

_CHUNK = 1 << 20


class Piece(NamedTuple):
    """A document, or a part of one. `size` counts the separator after it; `is_cut`: the document goes on behind it."""

    content: bytes
    size: int
    is_cut: bool


def cut_documents(file: IO[bytes], separator: bytes, max_bytes: int, left: int | None = None) -> Iterator[Piece]:
    """The documents of the next `left` bytes of a file of UTF-8 (None: to its end), one after another.

    Where one begins depends only on what is before it. At most `max_bytes` (0: any number) and a little are in memory.

    Args:
        separator: what is between two documents; empty: only `max_bytes` divides the text.
    """
    buffer, searched, at_end = bytearray(), 0, False
    while True:
        end = buffer.find(separator, searched) if separator else -1
        fits = not max_bytes or len(buffer) <= max_bytes + len(separator)
        if end < 0 and fits and not at_end:
            searched = max(0, len(buffer) - len(separator) + 1)
            chunk = file.read(_CHUNK if left is None else min(_CHUNK, left))
            left = left if left is None else left - len(chunk)
            at_end = not chunk
            buffer += chunk
            continue
        if end >= 0 and (not max_bytes or end <= max_bytes):
            size, piece = end + len(separator), Piece(bytes(buffer[:end]), end + len(separator), False)
        elif max_bytes and len(buffer) > max_bytes:
            size = _place_to_cut(buffer, max_bytes)
            piece = Piece(bytes(buffer[:size]), size, True)
        elif buffer:
            size, piece = len(buffer), Piece(bytes(buffer), len(buffer), False)
        else:
            return
        yield piece
        del buffer[:size]
        searched = 0


def cut_text(text: str, content: bytes, max_bytes: int) -> list[str]:
    """A text as parts of at most `max_bytes` (0: any number). `content` is the text in UTF-8."""
    if not max_bytes or len(content) <= max_bytes:
        return [text]
    parts, begin = [], 0
    while len(content) - begin > max_bytes:
        window = content[begin : begin + max_bytes + 1]
        end = begin + _place_to_cut(window, max_bytes)
        parts.append(content[begin:end].decode())
        begin = end
    return [*parts, content[begin:].decode()]


def _place_to_cut(content: bytes | bytearray, most: int) -> int:
    """Where to cut text of more than `most` bytes: after a line, else after a word, else after a character.

    Lines and words count if they end in the second half, so that no part is short."""
    for end in (b"\n", b" "):
        if (place := content.rfind(end, most // 2, most)) >= 0:
            return place + 1
    place = most
    while place > 1 and content[place] & 0xC0 == 0x80:  # inside of a character
        place -= 1
    return place
