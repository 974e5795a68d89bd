"""Reading files that anybody may have made: a regular file only, of a bounded size and depth.

Like `ingot.durable_files`, a module that all rooms may import. It imports none of them.
"""

import json
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_HALF_OF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")  # UTF-16 has characters of two halves, JSON may have one alone


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file (or a link to one) for reading. It never waits, as opening a named pipe would.

    Raises:
        ValueError: `path` is something else, such as a folder, a named pipe or a device.
        OSError: it does not exist, or may not be read.
    """
    _check_regular(path, os.stat(path).st_mode)  # before opening: opening a device may do something
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)  # it may have been replaced in between
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        ValueError: it is not a regular file, or has more than `max_bytes` bytes; not more than these are read.
        OSError: it does not exist, or cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # One more than it has: it may be growing. Nothing is read of a file that is too large already.
        content = file.read(size + 1) if size <= max_bytes else b""
    if max(size, len(content)) > max_bytes:
        raise ValueError(f"{path} has {max(size, len(content)):,} bytes, more than the {max_bytes:,} of such a file")
    return content


def read_json(path: Path, *, max_bytes: int, max_depth: int = 64) -> object:
    """The value of a JSON file. NaN and infinite numbers, which Python writes, are accepted.

    Args:
        max_bytes: of the file. Python's objects need up to 30 times as much memory.
        max_depth: of lists and objects inside one another.

    Raises:
        ValueError: it is not a regular file, is too large or too deep, or is not JSON in UTF-8. The message names the
            file.
        OSError: it does not exist, or cannot be read.
    """
    return parse_json(read_bytes(path, max_bytes=max_bytes), str(path), max_depth=max_depth)


def parse_json(content: bytes, where: str, *, max_depth: int = 64) -> object:
    """The value of JSON that was read from `where`, which error messages name. As `read_json`."""
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
        if _HALF_OF_A_PAIR.search(content):
            json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ValueError(f"{where} is not UTF-8: {error.reason}") from None
    except RecursionError:
        raise _too_deep(where, max_depth) from None
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    level = [value]
    for _ in range(max_depth):
        level = [inner for outer in level for inner in _inside(outer) if type(inner) in (dict, list)]
        if not level:
            return value
    raise _too_deep(where, max_depth)


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise ValueError(f"{path} is {kind}, not a regular file")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{name[:80]!r} stands twice in one object")
            seen.add(name)
    return values


def _inside(value: object) -> list | tuple:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else ()


def _too_deep(where: str, max_depth: int) -> ValueError:
    return ValueError(f"{where} has lists and objects inside one another more than {max_depth} deep")
