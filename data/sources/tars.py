"""Walks the members of a tar that anybody may have made: nothing is unpacked, damage never passes in silence."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_MEMBER_BYTES = 1 << 30


@dataclass(frozen=True)
class Member:
    """A regular file in a tar: `key` is its path up to the first dot of the last part, `extension` what follows it.

    `offset` and `size` of its content in bytes.
    """

    name: str
    key: str
    extension: str
    offset: int
    size: int


def members(path: Path, extensions: tuple[str, ...], max_bytes: int = MAX_MEMBER_BYTES) -> Iterator[Member]:
    """The files of a plain tar, in order.

    Raises ValueError for whatever is not a regular file or folder, a path that leads out of the archive, an extension
    other than `extensions` (the last part counts: `tokens.npy` is npy), a member of more than `max_bytes`, a
    compressed tar, and any damage that headers show: a bad header, a zeroed block, an end that is missing or early.
    """
    with open(path, "rb") as file:
        yield from members_of(file, path, extensions, max_bytes)


def members_of(
    file: BinaryIO, path: Path, extensions: tuple[str, ...], max_bytes: int = MAX_MEMBER_BYTES
) -> Iterator[Member]:
    """`members` of an open file; `path` is for messages."""
    size = file.seek(0, 2)
    file.seek(0)
    if file.read(4)[:2] == b"\x1f\x8b":
        raise ValueError(f"{path} is compressed: unpack it to a plain tar first")
    file.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # tarfile would keep every header in memory
                if info.isdir():
                    end = info.offset_data
                    continue
                member = _checked(info, path, extensions, max_bytes)
                end = member.offset + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if end > size:
                    raise ValueError(
                        f"{path}: member {info.name!r} claims {member.size:,} bytes at offset {member.offset:,}, the "
                        f"file ends at {size:,}: it is cut or damaged, copy it again"
                    )
                yield member
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise ValueError(f"{path} is damaged or not a plain tar, after offset {end:,}: {error}") from error
    _check_end(file, path, end, size)


def _checked(info: tarfile.TarInfo, path: Path, extensions: tuple[str, ...], max_bytes: int) -> Member:
    if not info.isreg() or info.issparse():
        raise ValueError(f"{path}: member {info.name!r} is not a regular file (a link, device or the like): refused")
    parts = info.name.split("/")
    if info.name.startswith("/") or ".." in parts:
        raise ValueError(f"{path}: member {info.name!r} has a path that leads out of the archive: refused")
    stem, _, extension = parts[-1].partition(".")
    if extension.rsplit(".", 1)[-1] not in extensions:
        allowed = ", ".join(f".{e}" for e in extensions)
        raise ValueError(f"{path}: member {info.name!r} is refused: only {allowed} are read here")
    if info.size > max_bytes:
        raise ValueError(f"{path}: member {info.name!r} has {info.size:,} bytes, more than {max_bytes:,}: refused")
    return Member(info.name, "/".join([*parts[:-1], stem]), extension, info.offset_data, info.size)


def _check_end(file: BinaryIO, path: Path, end: int, size: int) -> None:
    """tarfile takes a bad header or a zeroed block for the end of the archive; after a true end all is zero."""
    file.seek(end)
    rest = size - end
    if rest < tarfile.BLOCKSIZE:
        raise ValueError(f"{path} ends at byte {size:,} without the mark of a tar's end: it is cut, copy it again")
    while chunk := file.read(1 << 20):
        if chunk.strip(b"\0"):
            raise ValueError(
                f"{path} is damaged: no header at offset {end:,}, but {rest:,} bytes follow; copy it again"
            )
