"""Reads checkpoints of DeepSpeed ZeRO, of torch DCP and of transformers' Trainer, tensor by tensor.

All of them are pickles in part. Nothing of a pickle is executed: only tensors, plain values and a few classes that say
where tensors are can be made from one.
"""

import io
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ingot.launcher.checkpoints.foreign_names import ForeignModel, ForeignTensor, plain_name
from ingot.model.huggingface.files import open_weights
from ingot.parallel.tensor_shards import TensorShard, whole_shard
from ingot.safe_files import open_regular, read_bytes

STATES = ("exp_avg", "exp_avg_sq")
MAX_METADATA_BYTES = 2**30


class Source(Protocol):
    """An opened checkpoint of another system.

    Attributes:
        weights: shape of each weight, by name; None where the source knows it only when it is read.
        moments: names of the weights that have AdamW's moments.
        step: number of optimizer steps that were done; None if the source does not tell.
    """

    weights: dict[str, tuple[int, ...] | None]
    moments: set[str]
    step: int | None

    def read(self, name: str, state: str | None, shape: tuple[int, ...]) -> Tensor:
        """A weight (`state` None), or one of its moments, of the shape that the model expects."""


@dataclass
class Imported:
    """What a source gives: its tensors with Ingot's names, whether there are moments, and the step, if it is known."""

    shards: Iterator[TensorShard]
    has_moments: bool
    step: int | None


@contextmanager
def read_foreign(folder: Path, model: ForeignModel) -> Iterator[Imported]:
    """The weights, and if there are any AdamW's moments, of the parameters of a model, one after the other.

    Args:
        folder: of a tag that DeepSpeed's `save_checkpoint` has written at any ZeRO stage, or the one above it; of
            torch.distributed.checkpoint, or with one such folder for the model and one for the optimizer; or a
            `checkpoint-N` of transformers' Trainer.

    Raises:
        ValueError: the source is none of these, or has other parameters or shapes. The message names them.
    """
    with _open(folder, model) as source:
        found = {plain_name(name): shape for name, shape in source.weights.items()}
        tensors = [(tensor, _name_of(folder, tensor, found)) for tensor in model.tensors]
        used = {name for _, name in tensors}
        if odd := sorted(name for name in found.keys() - used if not model.may_have(name)):
            raise ValueError(f"{folder} is of another model; it also has: {', '.join(odd[:5])}")
        for tensor, name in tensors:
            shape = found[name]
            if shape is not None and shape != tensor.shape:
                raise ValueError(f"{folder} is of another model: {name} is {[*shape]} there and {[*tensor.shape]} here")
        lacking = sorted(used - source.moments)
        if lacking and len(lacking) < len(used):
            raise ValueError(f"{folder} has moments of AdamW for some weights, but not for {', '.join(lacking[:5])}")
        yield Imported(_shards(source, model, tensors, bool(lacking)), not lacking, source.step)


def _shards(
    source: Source, model: ForeignModel, tensors: list[tuple[ForeignTensor, str]], weights_only: bool
) -> Iterator[TensorShard]:
    for tensor, name in tensors:
        for state in (None,) if weights_only else (None, *STATES):
            value = source.read(name, state, tensor.shape).float()
            for part, piece in tensor.divide(value, model.shapes):
                yield whole_shard(f"model/{part}" if state is None else f"optimizer/{state}/{part}", piece)


def _name_of(folder: Path, tensor: ForeignTensor, found: dict) -> str:
    for name in tensor.names:
        if name in found:
            return name
    example = ", ".join([*found][:5]) or "nothing"
    raise ValueError(
        f"{folder} has no {tensor.names[0]}; it holds {example}, ... Name the family of its model with --family"
    )


@contextmanager
def _open(folder: Path, model: ForeignModel) -> Iterator[Source]:
    if stores := _dcp_folders(folder):
        yield DcpSource(folder, stores, model)
        return
    tag = _deepspeed_tag(folder)
    if tag is not None:
        with tempfile.TemporaryDirectory(dir=tag.parent) as temporary:
            yield DeepSpeedSource(tag, Path(temporary) / "universal")
    elif (folder / "config.json").exists():
        if model.family is None:
            raise ValueError(f"{folder} has the names of transformers; name the family of its model with --family")
        yield TrainerSource(folder, model)
    else:
        raise ValueError(
            f"{folder} is no checkpoint of DeepSpeed (a tag's folder with *_optim_states.pt), of torch DCP "
            "(.metadata), or of transformers' Trainer (config.json, model.safetensors, optimizer.pt)"
        )


def _dcp_folders(folder: Path) -> list[Path]:
    if (folder / ".metadata").exists():
        return [folder]
    # So accelerate names the two, for transformers' Trainer with FSDP.
    names = ("pytorch_model_fsdp_*", "optimizer_*")
    return [store.parent for name in names for store in sorted(folder.glob(f"{name}/.metadata"))]


def _deepspeed_tag(folder: Path) -> Path | None:
    if any(folder.glob("*_optim_states.pt")) or any(folder.glob("*_model_states.pt")):
        return folder
    if not (folder / "latest").exists():
        return None
    name = read_bytes(folder / "latest", max_bytes=1000).decode(errors="replace").strip()
    if Path(name).name != name or not (folder / name).is_dir():
        raise ValueError(f"{folder / 'latest'} names {name[:80]!r}, which is no folder beside it")
    return folder / name


class _MetadataUnpickler(pickle.Unpickler):
    """Makes the objects that describe a DCP folder, and no others."""

    _allowed: ClassVar[dict[str, set[str]]] = {
        "torch.distributed.checkpoint.metadata": {
            *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
            *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
        },
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
        "torch.serialization": {"_get_layout"},
        "torch": {"Size"},
        "collections": {"OrderedDict"},
        "pathlib": {"PosixPath", "PurePosixPath"},
    }

    def find_class(self, module: str, name: str) -> Any:
        if name in self._allowed.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it contains {module}.{name}")


class DcpSource:
    """Folders of torch.distributed.checkpoint, whose keys may have any prefix."""

    def __init__(self, folder: Path, stores: list[Path], model: ForeignModel):
        import torch.distributed.checkpoint as dcp

        self.folder = folder
        self._stored: dict[str, tuple[Any, str, Any]] = {}  # plain key: (reader, key, its metadata)
        for store in stores:
            reader = _reader(store)
            for key, entry in reader.read_metadata().state_dict_metadata.items():
                if isinstance(entry, dcp.metadata.TensorStorageMetadata):
                    self._stored[plain_name(str(key))] = (reader, key, entry)
        self._keys: dict[tuple[str, str | None], str] = {}
        for tensor in model.tensors:
            for name in tensor.names:
                for state in (None, *STATES):
                    if key := self._find(name, state):
                        self._keys[name, state] = key
        weights = {name: key for (name, state), key in self._keys.items() if state is None}
        self.weights: dict[str, tuple[int, ...] | None] = {n: tuple(self._entry(k).size) for n, k in weights.items()}
        self.moments = {name for name in weights if all((name, state) in self._keys for state in STATES)}
        self.step = self._read_step()
        self._check_layers(model)

    def _find(self, name: str, state: str | None) -> str | None:
        """The key that is one of the usual ones, or has it after a prefix."""
        ends = (name, f"module.{name}", f"model/{name}")
        if state is not None:
            ends = (f"state.{name}.{state}", f"state.module.{name}.{state}", f"optimizer/{state}/{name}")
        found = [key for key in ends if key in self._stored]
        found = found or [key for key in self._stored if key.endswith(tuple(f".{end}" for end in ends))]
        if len(found) > 1:
            raise ValueError(f"{self.folder} has {len(found)} tensors for {name}: {', '.join(found[:5])}")
        return found[0] if found else None

    def _check_layers(self, model: ForeignModel) -> None:
        """Further layers, which a name with another number shows: other keys of a DCP folder may be anything."""
        numberless = lambda name: re.sub(r"\.\d+\.", ".*.", name, count=1)  # noqa: E731
        names = [name for tensor in model.tensors for name in tensor.names]
        patterns = {numberless(name) for name in names} - set(names)
        used = set(self._keys.values())
        for key in self._stored.keys() - used:
            pattern = numberless(key)
            if any(pattern == each or pattern.endswith(f".{each}") for each in patterns):
                raise ValueError(f"{self.folder} is of another model; it also has: {key}")

    def _entry(self, key: str) -> Any:
        return self._stored[key][2]

    def _read_step(self) -> int | None:
        for (_, state), key in self._keys.items():
            step = key.removesuffix(STATES[0]) + "step"
            if state == STATES[0] and step in self._stored and not self._entry(step).size.numel() > 1:
                return int(self._load(step).item())
        return None

    def _load(self, key: str) -> Tensor:
        import torch.distributed.checkpoint as dcp

        reader, stored, entry = self._stored[key]
        tensors = {stored: torch.empty(tuple(entry.size), dtype=entry.properties.dtype)}
        dcp.load(tensors, storage_reader=reader, no_dist=True)
        return tensors[stored]

    def read(self, name: str, state: str | None, shape: tuple[int, ...]) -> Tensor:
        key = self._keys[name, state]
        size = tuple(self._entry(key).size)
        if size != shape:
            raise ValueError(f"{self.folder} is of another model: {key} is {[*size]} there and {[*shape]} here")
        return self._load(key)


def _reader(store: Path) -> Any:
    """torch's reader of a DCP folder, with metadata that are read once, and without executing anything."""
    import torch.distributed.checkpoint as dcp

    content = read_bytes(store / ".metadata", max_bytes=MAX_METADATA_BYTES)
    try:
        metadata = _MetadataUnpickler(io.BytesIO(content)).load()
        if not isinstance(metadata, dcp.metadata.Metadata):
            raise ValueError("it holds no Metadata")
        files = {info.relative_path for info in metadata.storage_data.values()}
    except Exception as error:  # a damaged pickle raises errors of any kind
        raise ValueError(f"{store / '.metadata'} is damaged, or no metadata of torch DCP: {error}") from None
    for file in files:
        if not isinstance(file, str) or Path(file).is_absolute() or ".." in Path(file).parts:
            raise ValueError(f"{store / '.metadata'} names a file outside of its folder: {str(file)[:80]!r}")
        open_regular(store / file).close()

    class Reader(dcp.FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            if metadata.storage_meta is None:
                metadata.storage_meta = dcp.metadata.StorageMeta()
            return metadata

    return Reader(str(store))


class DeepSpeedSource:
    """A tag of DeepSpeed, converted to its universal format, in which each parameter has a folder."""

    def __init__(self, tag: Path, universal: Path):
        program = Path(__file__).with_name("universal_format.py")
        line = [sys.executable, str(program), "--input_folder", str(tag), "--output_folder", str(universal)]
        result = subprocess.run([*line, "--inject_missing_state"], capture_output=True, text=True)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or [f"code {result.returncode}"])[-1]
            raise ValueError(f"DeepSpeed cannot convert {tag}: {_unsafe(result.stderr) or reason}")
        zero = universal / "zero"
        self._folders = {path.name.removeprefix("module."): path for path in zero.iterdir() if path.is_dir()}
        self.tag = tag
        self.weights: dict[str, tuple[int, ...] | None] = {plain_name(name): None for name in self._folders}
        self._folders = {plain_name(name): path for name, path in self._folders.items()}
        self.moments = {name for name, path in self._folders.items() if (path / f"{STATES[0]}.pt").is_file()}
        step = next((path / "step.pt" for path in self._folders.values() if (path / "step.pt").is_file()), None)
        number = re.fullmatch(r"global_step(\d+)", tag.name)
        if step is not None:
            self.step: int | None = int(torch.load(step, weights_only=True))
        else:
            self.step = int(number[1]) if number else None

    def read(self, name: str, state: str | None, shape: tuple[int, ...]) -> Tensor:
        tensor = torch.load(self._folders[name] / f"{state or 'fp32'}.pt", weights_only=True, map_location="cpu")
        tensor = tensor["param"] if isinstance(tensor, dict) else tensor
        same = tensor.numel() == torch.Size(shape).numel()
        if not same or (tensor.dim() > 1 and tuple(tensor.shape) != shape):  # ZeRO-3 keeps flat ones
            raise ValueError(f"{self.tag}: {name} is {[*tensor.shape]} there and {[*shape]} here")
        return tensor.reshape(shape)


def _unsafe(messages: str) -> str | None:
    """What torch's restricted unpickler refused, in its own long message."""
    found = re.search(r"Unsupported (?:global|operand|class)[^\n]*", messages)
    return f"it contains more than tensors and plain values: {found[0]}" if found else None


class TrainerSource:
    """A `checkpoint-N` of transformers' Trainer, or another folder with its weights, which then are all that it has."""

    def __init__(self, folder: Path, model: ForeignModel):
        self.folder = folder
        self._weights = open_weights(folder)
        self.weights: dict[str, tuple[int, ...] | None] = {**self._weights.shapes}
        self._moments: dict[str, dict[str, Tensor]] = {}
        self.step: int | None = None
        if (folder / "optimizer.pt").exists():
            self._moments, self.step = _trainer_moments(folder, model)
        self.moments = set(self._moments)

    def read(self, name: str, state: str | None, shape: tuple[int, ...]) -> Tensor:
        return self._weights.read(name) if state is None else self._moments[name][state]


def _trainer_moments(folder: Path, model: ForeignModel) -> tuple[dict[str, dict[str, Tensor]], int]:
    """The moments by name. The file numbers them in the order of the Trainer's parameter groups."""
    file = folder / "optimizer.pt"
    open_regular(file).close()
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        groups = [list(group["params"]) for group in saved["param_groups"]]
        states = dict(saved["state"])
    except Exception as error:  # errors of pickle, zip and torch
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{file} is damaged, or contains more than tensors: {reason[:200]}") from None
    shapes, decayed = _trainer_parameters(folder, model)
    orders = ([[n for n in shapes if n in decayed], [n for n in shapes if n not in decayed]], [list(shapes)])
    order = next((each for each in orders if [*map(len, each)] == [*map(len, groups)]), None)
    if order is None:
        raise ValueError(f"{file} has groups of {[*map(len, groups)]} parameters, the model {[*map(len, orders[0])]}")
    moments = {}
    for names, numbers in zip(order, groups, strict=True):
        for name, number in zip(names, numbers, strict=True):
            found = states.get(number)
            if not isinstance(found, dict) or any(not isinstance(found.get(state), Tensor) for state in STATES):
                raise ValueError(f"{file} has no {' and '.join(STATES)} for {name}: it is not the state of AdamW")
            if odd := next((s for s in STATES if tuple(found[s].shape) != shapes[name]), None):
                raise ValueError(f"{file}: {odd} of {name} is {[*found[odd].shape]}, not {[*shapes[name]]}")
            moments[name] = found
    steps = {int(found["step"]) for found in moments.values() if "step" in found}
    if len(steps) != 1:
        raise ValueError(f"{file} has {len(steps)} different numbers of steps: {sorted(steps)[:5]}")
    return moments, steps.pop()


def _trainer_parameters(folder: Path, model: ForeignModel) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """The parameters of the model of transformers, in its order, and those that its Trainer decays."""
    import transformers

    assert model.family is not None
    settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        theirs = getattr(transformers, model.family.heads[model.kind].architecture)(settings)
    trainer = object.__new__(transformers.Trainer)  # the method uses nothing of one
    decayed = trainer.get_decay_parameter_names(theirs)
    return {name: tuple(p.shape) for name, p in theirs.named_parameters()}, set(decayed)
