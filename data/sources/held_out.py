"""The validation split of a corpus that is made of one text file: the end of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from ingot.data.sources.compressed import open_decompressed
from ingot.data.sources.cutting import cut_documents
from ingot.data.sources.documents import TRAIN, VALIDATION, split_of
from ingot.data.sources.file_parts import AUTO, FilePart, skip


def hold_out_end(given: list[FilePart], fraction: float) -> list[FilePart]:
    """The parts of a corpus, of which one text file that is alone gets a validation split.

    There the hashes of names often choose no document. Then about `fraction` of the file, from a line (or, with a
    separator, from a document) on to the end, becomes the validation split. Other parts are returned as they are.
    """
    parts = sorted(given, key=lambda part: (part.file or part.name, part.start))
    first = parts[0]
    is_alone = len({part.file or part.name for part in parts}) == 1 and first.kind in ("text", "texts")
    is_whole = all(one.stop == other.start for one, other in pairwise(parts))
    if not is_alone or not is_whole or not fraction or any(part.split != AUTO or part.limit for part in parts):
        return given
    if first.separator and _has_both(parts, fraction):
        return given
    if first.kind == "text":
        stop, modified = first.size, os.stat(first.path).st_mtime_ns
        parts = [replace(first, kind="texts", file=first.name, stop=stop, num_rows=1, modified=modified)]
    size = parts[-1].stop
    target = min(size - 1, int(size * (1 - fraction)))
    number = next(n for n, part in enumerate(parts) if target < part.stop)
    part = parts[number]
    border, row = _border(part, target)
    if not part.start < border < part.stop:
        return [replace(each, split=TRAIN) for each in parts]  # there is nothing to divide
    before = replace(part, stop=border, size=border - part.start, num_rows=row - part.first_row)
    after = replace(part, start=border, size=part.stop - border, first_row=row)
    more = int(not part.separator)  # the document at the border becomes two
    after = replace(after, num_rows=part.first_row + part.num_rows - row + more)
    rest = [replace(each, first_row=each.first_row + more) for each in parts[number + 1 :]]
    divided = [
        *(replace(each, split=TRAIN) for each in (*parts[:number], before)),
        *(replace(each, split=VALIDATION) for each in (after, *rest)),
    ]
    return [replace(each, name=f"{each.file}#{number:05d}") for number, each in enumerate(divided)]


def _has_both(parts: Sequence[FilePart], fraction: float) -> bool:
    """Whether the hashes of names give both splits at least one document."""
    found = set()
    for part in parts:
        for row in range(part.first_row, part.first_row + part.num_rows):
            found.add(split_of(f"{part.file}:{row}", fraction))
            if len(found) == 2:
                return True
    return False


def _border(part: FilePart, target: int) -> tuple[int, int]:
    """Where the validation split begins, near the byte `target` of the file, and the row of its first document.

    What is before it and what is behind it has text; otherwise the border is an end of the part."""
    begin, row = part.start, part.first_row
    with open_decompressed(part.path) as file:
        skip(file, part.start)
        for piece in cut_documents(file, part.separator.encode(), part.max_document_bytes, part.stop - part.start):
            end = begin + piece.size
            if end > target:
                if part.separator and end < part.stop:
                    return end, row + 1
                if part.separator and begin > part.start:
                    return begin, row
                return begin + _line_near(piece.content, target - begin), row + 1
            begin, row = end, row + 1
    return part.stop, row


def _line_near(content: bytes, place: int) -> int:
    """The beginning of a line or a word, or else of a character, near a place, with text before and behind it."""
    for end in (b"\n", b" "):
        for found in (content.find(end, place) + 1, content.rfind(end, 0, place) + 1):
            if content[:found].strip() and content[found:].strip():
                return found
    while place < len(content) and content[place] & 0xC0 == 0x80:
        place += 1
    return place
