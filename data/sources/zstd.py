"""A .zst file as a binary file of what is in it; unlike the library's own reader it notices an end that comes early."""

from __future__ import annotations

import io
from pathlib import Path

_CHUNK = 4096  # bytes read at once: it may unfold to 30,000 times as much


class _Unfolded(io.RawIOBase):
    def __init__(self, path: Path):
        import zstandard

        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = None
        self._file = open(path, "rb")  # noqa: SIM115  (closed in close)
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            chunk = self._file.read(_CHUNK)
            if not chunk:
                if self._frame is not None:
                    raise EOFError("it ends inside of a frame: copy it again")
                return 0
            self._ready = memoryview(self._unfold(chunk))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _unfold(self, chunk: bytes) -> bytes:
        parts = []
        while chunk:
            self._frame = self._frame or self._decompressor.decompressobj()
            parts.append(self._frame.decompress(chunk))
            chunk = b""
            if self._frame.eof:  # another frame may follow
                chunk, self._frame = self._frame.unused_data, None
        return b"".join(parts)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_zstd(path: Path) -> io.BufferedReader:
    """Raises ValueError where the library is not installed; reading raises EOFError and the library's errors."""
    try:
        return io.BufferedReader(_Unfolded(path), 1 << 18)
    except ImportError:
        raise ValueError(f"{path} needs the package zstandard: pip install zstandard") from None
