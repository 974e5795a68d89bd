"""Writes that survive a crash or a power cut: afterwards a file has its new content or its old one, never a part.

Like `ingot.safe_files`, a module that all rooms may import. It imports none of them.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO


def flush_to_disk(file: IO) -> None:
    """Writes what Python and the operating system still hold of an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Writes the names in `folder` to the disk, so that new files and renames in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replaces the file `path` by one with `content` (a text is written as UTF-8).

    Raises:
        OSError: the file cannot be written. The old one is then as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        flush_to_disk(file)
    temporary.replace(path)
    sync_folder(path.parent)


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Replaces the folder `path` by one that `write` fills. If that fails, the old one stays.

    Raises:
        OSError: the folder cannot be written.
    """
    new, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        write(new)
        if path.exists():
            path.rename(old)
        new.rename(path)
        sync_folder(path.parent)
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
