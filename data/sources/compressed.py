"""A compressed file as a binary file of its content. A truncated one is noticed, which not every library does."""

from __future__ import annotations

import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol, cast

from ingot.packages import how_to_install

ENDINGS = (".gz", ".xz", ".zst")
_CHUNK = 4096  # bytes that are read at once; the content may be 30,000 times as large
_MAX_XZ_MEMORY = 2**30  # the presets of xz need at most 65 MB to decompress; a file may ask for 4 GB


class _Frame(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _Decompressed(io.RawIOBase):
    """The content of one frame after another, each with a decompressor of its own."""

    def __init__(self, path: Path, new_frame: Callable[[], _Frame]):
        self._new_frame = new_frame
        self._frame: _Frame | None = None
        self._file = open(path, "rb")  # noqa: SIM115  (closed in close)
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._file.read(_CHUNK)
            if not chunk:
                if self._frame is not None:
                    raise EOFError("it ends inside a frame: copy it again")
                return 0
            self._ready = memoryview(self._decompress(chunk))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _decompress(self, chunk: bytes) -> bytes:
        parts = []
        while chunk:
            if self._frame is None:
                chunk = chunk.lstrip(b"\0")  # xz may fill up to a multiple of four bytes; no frame begins with a zero
                if not chunk:
                    break
            frame = self._frame or self._new_frame()
            parts.append(frame.decompress(chunk))
            chunk, self._frame = b"", frame
            if frame.eof:  # another frame may follow
                chunk, self._frame = frame.unused_data, None
        return b"".join(parts)

    def close(self) -> None:
        self._file.close()
        super().close()


def is_compressed(path: str | Path) -> bool:
    return str(path).lower().endswith(ENDINGS)


def open_decompressed(path: Path) -> IO[bytes]:
    """Open a file; it is decompressed if its name ends in .gz, .xz or .zst.

    Raises ValueError if a package is missing. Reading raises EOFError and the errors of the library.
    """
    name = str(path).lower()
    if name.endswith(".gz"):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if name.endswith(".xz"):
        return io.BufferedReader(_Decompressed(path, lambda: lzma.LZMADecompressor(memlimit=_MAX_XZ_MEMORY)), 1 << 18)
    if name.endswith(".zst"):
        try:
            import zstandard
        except ImportError:
            raise ValueError(f"{path} needs the package zstandard: run {how_to_install('zstandard')}") from None
        new_frame = zstandard.ZstdDecompressor(max_window_size=2**30).decompressobj
        return io.BufferedReader(_Decompressed(path, cast("Callable[[], _Frame]", new_frame)), 1 << 18)
    return open(path, "rb")
