"""The files of a checkpoint folder: config.json and weights, in one file or in shards, safetensors or `torch.save`."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ingot.model.huggingface.mapping.key_map import Shape
from ingot.safe_files import open_regular, read_json

WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
MAX_CONFIG_BYTES, MAX_INDEX_BYTES = 2**24, 2**27
FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}
"""Supported dtypes of weights, as safetensors and torch spell them."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def find_folder(path_or_name: str | Path, revision: str | None = None) -> Path:
    """The folder of a path, or of a model on the hub, which is downloaded.

    Raises:
        ValueError: there is no such folder or model, or the hub cannot be reached.
    """
    path = Path(path_or_name)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path} is a file; pass a folder with a config.json and weights")
    if isinstance(path_or_name, Path) or not _HUB_NAME.fullmatch(path_or_name):
        raise ValueError(f"{path} does not exist")
    from huggingface_hub import snapshot_download

    fetch = lambda *patterns: Path(snapshot_download(path_or_name, revision=revision, allow_patterns=patterns))  # noqa: E731
    texts = ("*.json", "*.txt", "*.model", "*.jinja")
    try:
        folder = fetch(*texts, "*.safetensors")
        return folder if list(folder.glob("*.safetensors")) else fetch(*texts, "*.bin")
    except Exception as error:  # the library raises many types of errors, which all mean that the download failed
        raise ValueError(f"{path_or_name} is not a folder, and cannot be downloaded from the hub: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        ValueError: there is no config.json, or it is not a JSON object.
    """
    missing = f"{folder} is not a checkpoint: it has no config.json"
    return _read_object(folder / "config.json", missing, MAX_CONFIG_BYTES)


class Weights:
    """Tensors of files, by name. A tensor is read when it is needed, and nothing is cached.

    Attributes:
        shapes: Shape of each tensor.
        dtypes: dtype of each tensor, as its file spells it.
    """

    def __init__(self) -> None:
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, str] = {}
        self._readers: dict[str, Callable[[], Tensor]] = {}

    def read(self, name: str) -> Tensor:
        """A tensor, which may be a view of the file. Release it before the next one is read: the pages of a
        memory-mapped file count as used until then."""
        return self._readers[name]()

    def add_safetensors(self, path: Path, wanted: set[str] | None) -> None:
        """Adds the tensors of a file. The library checks the header against the size of the file."""
        open_regular(path).close()
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (it is not a dictionary)
                    slice_ = file.get_slice(name)
                    if wanted is None or name in wanted:
                        self._add(path, name, tuple(slice_.get_shape()), partial(_read_safetensor, path, name))
                        self.dtypes[name] = slice_.get_dtype()
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error

    def add_pickle(self, path: Path, wanted: set[str] | None) -> None:
        """Adds the tensors of a file of `torch.save`. Only tensors are unpickled."""
        _check_size_of_pickle(path)
        try:
            try:
                values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before torch 1.6 cannot be memory-mapped
                values = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # errors of pickle, zip and torch
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"{path} is damaged, or contains more than plain tensors: {reason[:200]}") from error
        if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
            raise ValueError(f"{path} contains more than tensors by name")
        for name, tensor in values.items():
            if wanted is None or name in wanted:
                self._add(path, name, tuple(tensor.shape), partial(_same, tensor))
                self.dtypes[name] = str(tensor.dtype).removeprefix("torch.")

    def _add(self, path: Path, name: str, shape: Shape, reader: Callable[[], Tensor]) -> None:
        if name in self.shapes:
            raise ValueError(f"{path}: {name} is also in another file")
        self.shapes[name], self._readers[name] = shape, reader


def open_weights(folder: Path) -> Weights:
    """The tensors of a folder. Safetensors have priority over `torch.save`, and one file over shards.

    Raises:
        ValueError: there are no weights, a shard is missing, or a file is damaged.
    """
    for whole in WHOLE:
        weights = Weights()
        add = weights.add_safetensors if whole.endswith(".safetensors") else weights.add_pickle
        if (folder / whole).exists():
            add(folder / whole, None)
            return weights
        if (folder / (whole + INDEX)).exists():
            for file, names in _shards(folder, whole + INDEX).items():
                add(folder / file, names)
                if lost := sorted(names - weights.shapes.keys()):
                    raise ValueError(f"{folder / file} lacks {shorten(lost)}, which are in {whole + INDEX}")
            return weights
    raise ValueError(f"{folder} has no weights: no {' or '.join(WHOLE)}, with or without {INDEX}")


def shorten(names: list[str], most: int = 6) -> str:
    """The first of several names, for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _read_safetensor(path: Path, name: str) -> Tensor:
    # The file is opened for each tensor: an open file keeps all pages that were read.
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _shards(folder: Path, index: str) -> dict[str, set[str]]:
    """The names of the tensors of each shard. All shards exist."""
    file_of = _read_object(folder / index, "", MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(file_of, dict) or not file_of or not all(isinstance(file, str) for file in file_of.values()):
        raise ValueError(f"{folder / index} has no weight_map of tensor names and files")
    shards: dict[str, set[str]] = {}
    for name, file in file_of.items():
        shards.setdefault(file, set()).add(name)
    foreign = sorted(file for file in shards if Path(file).name != file)
    if foreign:
        raise ValueError(f"{folder / index} names files in other folders: {shorten(foreign)}")
    if lost := sorted(file for file in shards if not (folder / file).exists()):
        raise ValueError(f"{folder} lacks {shorten(lost)}, which {index} names")
    return shards


def _check_size_of_pickle(path: Path) -> None:
    """torch never compresses what it saves. A file that is compressed could need any amount of memory."""
    with open_regular(path) as file:
        try:
            members = zipfile.ZipFile(file).infolist()
        except zipfile.BadZipFile:  # the format before torch 1.6, or no such file: torch says so
            return
        size = file.seek(0, 2)
    if any(member.compress_type != zipfile.ZIP_STORED or member.file_size > size for member in members):
        raise ValueError(f"{path} is damaged, or not a file of torch.save: it has compressed parts")


def _read_object(path: Path, missing: str, max_bytes: int) -> dict[str, Any]:
    try:
        values = read_json(path, max_bytes=max_bytes)
    except FileNotFoundError:
        raise ValueError(missing) from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object")
    return values
