"""Files of tensors in the safetensors format, written without a copy in memory, and read in parts.

Format: 8 bytes with the length of a JSON header, the header, and then the bytes of the tensors, row-major. (The library
safetensors copies each tensor before it writes it, and each part that it reads.)
"""

import hashlib
import io
import json
import math
import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from ingot.durable_files import flush_to_disk
from ingot.parallel.checkpoint.format import is_counts, is_regular
from ingot.parallel.tensor_shards import Rectangle
from ingot.safe_files import open_regular, parse_json

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in NAMES.items()}
_BITS = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}
_TORCH_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCK = 16 << 20  # bytes written at once


MOST_HEADER = 100_000_000
"""Bytes of a header, as in the library safetensors."""


class FileDamaged(ValueError):
    """A file whose header is wrong, or does not fit its content."""


def write(
    path: Path, tensors: dict[str, torch.Tensor], pause: Callable[[float], None] = lambda hashing_seconds: None
) -> dict:
    """Writes tensors, which are in host memory, and syncs the file.

    Args:
        pause: a function that is called after each block, with the CPU seconds that the hash of the block took. It is
            computed in another thread while the block is written.

    Returns:
        `bytes`, the size of the file, and `sha256`, in hexadecimal.

    Raises:
        OSError: the file cannot be written.
    """
    header: dict[str, dict] = {}
    at = 0
    for key, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    sha256 = hashlib.sha256(head)

    def add(block: memoryview) -> float:
        start = time.thread_time()
        sha256.update(block)
        return time.thread_time() - start

    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1, "sha256") as other:
        _write_all(file, head)
        for tensor in tensors.values():
            flat = tensor.detach().contiguous().reshape(-1)
            bits = memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy's arrays are buffers
            for start in range(0, len(bits), _BLOCK):
                block = bits[start : start + _BLOCK]
                hashing = other.submit(add, block)
                _write_all(file, block)
                pause(hashing.result())
        flush_to_disk(file)
    return {"bytes": len(head) + at, "sha256": sha256.hexdigest()}


def _write_all(file: io.FileIO, data: bytes | memoryview) -> None:
    while data:
        data = data[file.write(data) :]  # a system call may write only a part


class TensorFile:
    """A file that is open for reading. Only the parts that are requested are read.

    Raises:
        FileDamaged: the header is wrong for a file of this size.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path):
        self.path = path
        if not is_regular(path):
            raise FileDamaged(f"{path.name} is no regular file")
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MOST_HEADER):
                raise FileDamaged(f"{path.name} has no header of tensors")
            try:
                header = parse_json(file.read(length), f"the header of {path.name}")
            except ValueError as error:
                raise FileDamaged(str(error)) from None
            self._start = 8 + length
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)  # no read-ahead into parts that other ranks need
        if not isinstance(header, dict):
            raise FileDamaged(f"{path.name} has no header of tensors")
        header.pop("__metadata__", None)
        self._entries = {key: self._entry(key, value, size) for key, value in header.items()}

    def _entry(self, key: str, value: object, size: int) -> tuple[torch.dtype, tuple[int, ...], int]:
        """Type, shape and first byte of a tensor in a file of `size` bytes."""
        wrong = FileDamaged(f"{self.path.name} has a wrong entry for {key[:100]}")
        if not isinstance(value, dict) or not isinstance(value.get("dtype"), str) or value["dtype"] not in _DTYPES:
            raise wrong
        dtype, shape, offsets = _DTYPES[value["dtype"]], value.get("shape"), value.get("data_offsets")
        if not is_counts(shape) or not is_counts(offsets) or len(offsets) != 2:
            raise wrong
        begin, end = offsets
        if end - begin != math.prod(shape) * dtype.itemsize or not 0 <= begin <= end <= size - self._start:
            raise wrong
        return dtype, tuple(shape), self._start + begin

    def read_into(self, target: torch.Tensor, key: str, rectangle: Rectangle) -> int:
        """Fills `target` (any device) with the elements of `rectangle` of the stored tensor. Returns their bytes.

        Raises:
            FileDamaged: there is no such tensor, or it has another type or shape.
        """
        entry = self._entries.get(key)
        if entry is None:
            raise FileDamaged(f"{self.path.name} has no {key}")
        dtype, shape, begin = entry
        if (
            dtype != target.dtype
            or len(shape) != len(rectangle.shape)
            or any(o + n > s for o, n, s in zip(rectangle.offset, rectangle.shape, shape, strict=True))
        ):
            raise FileDamaged(f"{self.path.name} holds {key} as {dtype} {list(shape)}")
        width = dtype.itemsize
        pages = self._pages(begin, shape, rectangle, width)
        self._map.madvise(mmap.MADV_WILLNEED, *pages)
        stored = np.ndarray(shape, dtype=_BITS[width], buffer=self._map, offset=begin)
        part = stored[tuple(slice(o, o + n) for o, n in zip(rectangle.offset, rectangle.shape, strict=True))]
        if target.device.type == "cpu":
            np.copyto(target.view(_TORCH_BITS[width]).numpy(), part)
        else:
            target.view(_TORCH_BITS[width]).copy_(torch.from_numpy(np.ascontiguousarray(part)))
        self._map.madvise(mmap.MADV_DONTNEED, *pages)  # otherwise they would count as memory of this process
        return rectangle.numel * width

    def _pages(self, begin: int, shape: tuple[int, ...], rectangle: Rectangle, width: int) -> tuple[int, int]:
        """Start and length of the pages with the rows of a rectangle, which are whole rows along the first dim."""
        row = math.prod(shape[1:]) * width
        rows = (rectangle.offset[0], rectangle.shape[0]) if shape else (0, 1)
        first = (begin + rows[0] * row) // mmap.PAGESIZE * mmap.PAGESIZE
        return first, begin + (rows[0] + rows[1]) * row - first

    def close(self) -> None:
        self._map.close()
