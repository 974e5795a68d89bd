"""A .zst file as a binary file of its content. Unlike the reader of the library it notices a truncated file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import zstandard

_CHUNK = 4096  # bytes that are read at once; the content may be 30,000 times as large


class _Decompressed(io.RawIOBase):
    def __init__(self, path: Path):
        import zstandard

        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: zstandard.ZstdDecompressionObj | None = None
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
            frame = self._frame or self._decompressor.decompressobj()
            parts.append(frame.decompress(chunk))
            chunk, self._frame = b"", frame
            if frame.eof:  # another frame may follow
                chunk, self._frame = frame.unused_data, None
        return b"".join(parts)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_zstd(path: Path) -> io.BufferedReader:
    """Raises ValueError if `zstandard` is not installed. Reading raises EOFError and the errors of the library."""
    try:
        return io.BufferedReader(_Decompressed(path), 1 << 18)
    except ImportError:
        raise ValueError(f"{path} needs the package zstandard: pip install zstandard") from None
