"""Goes through the members of a tar from any origin: nothing is unpacked, and damage always raises an error."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_MEMBER_BYTES = 1 << 30


@dataclass(frozen=True)
class Member:
    """A regular file in a tar.

    Attributes:
        key: its path up to the first dot of the last part.
        extension: the rest of its path, after that dot.
        offset, size: of its content, in bytes.
    """

    name: str
    key: str
    extension: str
    offset: int
    size: int


def members(path: Path, extensions: tuple[str, ...], max_bytes: int = MAX_MEMBER_BYTES) -> Iterator[Member]:
    """The files of a plain tar, in order.

    Raises:
        ValueError: a member that is not a regular file or folder, a path that leads out of the archive, an extension
            that is not in `extensions` (its last part counts: `tokens.npy` is npy), a member of more than `max_bytes`,
            a compressed tar, or damage that headers show: a bad header, a zeroed block, a missing or early end.
    """
    with open(path, "rb") as file:
        yield from members_of(file, path, extensions, max_bytes)


def members_of(
    file: BinaryIO, path: Path, extensions: tuple[str, ...], max_bytes: int = MAX_MEMBER_BYTES
) -> Iterator[Member]:
    """As `members`, for an open file; `path` is for messages."""
    size = file.seek(0, 2)
    file.seek(0)
    if file.read(4)[:2] == b"\x1f\x8b":
        raise ValueError(f"{path} is compressed: unpack it to a plain tar first")
    file.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
            while (info := tar.next()) is not None:
                # tarfile keeps every header in memory. `members` is not documented, but has been there since Python 2.
                tar.members.clear()  # type: ignore[attr-defined]  # missing in typeshed
                if info.isdir():
                    end = info.offset_data
                    continue
                member = _checked(info, path, extensions, max_bytes)
                end = member.offset + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if end > size:
                    raise ValueError(
                        f"{path}: member {info.name!r} claims {member.size:,} bytes at offset {member.offset:,}, the "
                        f"file ends at {size:,}: it is truncated or damaged, copy it again"
                    )
                yield member
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise ValueError(f"{path} is damaged or not a plain tar, after offset {end:,}: {error}") from error
    _check_end(file, path, end, size)


def _checked(info: tarfile.TarInfo, path: Path, extensions: tuple[str, ...], max_bytes: int) -> Member:
    if not info.isreg() or info.issparse():
        raise ValueError(f"{path}: member {info.name!r} is not a regular file (but a link or a device): refused")
    parts = info.name.split("/")
    if info.name.startswith("/") or ".." in parts:
        raise ValueError(f"{path}: member {info.name!r} has a path that leads out of the archive: refused")
    stem, _, extension = parts[-1].partition(".")
    if extension.rsplit(".", 1)[-1] not in extensions:
        allowed = ", ".join(f".{e}" for e in extensions)
        raise ValueError(f"{path}: member {info.name!r} is refused: only {allowed} are read here")
    if info.size < 0:
        raise ValueError(f"{path}: member {info.name!r} claims {info.size:,} bytes: the tar is damaged, copy it again")
    if info.size > max_bytes:
        raise ValueError(f"{path}: member {info.name!r} has {info.size:,} bytes, more than {max_bytes:,}: refused")
    return Member(info.name, "/".join([*parts[:-1], stem]), extension, info.offset_data, info.size)


def _check_end(file: BinaryIO, path: Path, end: int, size: int) -> None:
    """Check that only zeros follow the end: tarfile also takes a bad header or a zeroed block for the end."""
    file.seek(end)
    rest = size - end
    if rest < tarfile.BLOCKSIZE:
        raise ValueError(f"{path} ends at byte {size:,} without the end mark of a tar: it is truncated, copy it again")
    while chunk := file.read(1 << 20):
        if chunk.strip(b"\0"):
            raise ValueError(
                f"{path} is damaged: no header at offset {end:,}, but {rest:,} bytes follow; copy it again"
            )
