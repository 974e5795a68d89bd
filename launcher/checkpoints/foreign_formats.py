"""Reads checkpoints of DeepSpeed ZeRO and torch DCP, tensor by tensor, with Ingot's names."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ingot.parallel.tensor_shards import TensorShard, parameter_of, whole_shard

STATES = ("exp_avg", "exp_avg_sq")
Shapes = dict[str, tuple[int, ...]]


@contextmanager
def read_foreign(source: Path, shapes: Shapes, other_names: set[str]) -> Iterator[Iterator[TensorShard]]:
    """The weights and AdamW's moments of the parameters in `shapes`, one after the other.

    Args:
        source: a folder of torch.distributed.checkpoint, or the folder of a tag that DeepSpeed's `save_checkpoint` has
            written at any ZeRO stage. Both contain pickles: open only those that you trust.
        other_names: further names of shared parameters, which the source may have too.

    Raises:
        ValueError: the source is neither, or has other parameters or shapes. The message names them.
    """
    if (source / ".metadata").is_file():
        yield _from_dcp(source, shapes)
    elif any(source.glob("*_optim_states.pt")):
        with tempfile.TemporaryDirectory(dir=source.parent) as folder:
            yield _from_deepspeed(source, Path(folder) / "universal", shapes, other_names)
    else:
        raise ValueError(
            f"{source} is no checkpoint of DeepSpeed (a tag's folder with *_optim_states.pt) or torch DCP (.metadata)"
        )


def _from_dcp(source: Path, shapes: Shapes) -> Iterator[TensorShard]:
    import torch.distributed.checkpoint as dcp

    metadata = dcp.FileSystemReader(str(source)).read_metadata().state_dict_metadata
    stored = {key: entry for key, entry in metadata.items() if isinstance(entry, dcp.metadata.TensorStorageMetadata)}
    names = {}
    for name in shapes:
        weights = (name, f"model.{name}", f"module.{name}", f"model/{name}")
        names[f"model/{name}"] = _one(source, stored, name, weights)
        for state in STATES:
            moments = (f"state.{name}.{state}", f"state.module.{name}.{state}", f"optimizer/{state}/{name}")
            names[f"optimizer/{state}/{name}"] = _one(source, stored, f"{state} of {name}", moments)
    for ours, theirs in names.items():
        size, expected = tuple(stored[theirs].size), shapes[parameter_of(ours)]
        if size != expected:
            raise ValueError(f"{source} is of another model: {theirs} is {[*size]} there and {[*expected]} here")
    for ours, theirs in names.items():
        tensors = {theirs: torch.empty(tuple(stored[theirs].size), dtype=stored[theirs].properties.dtype)}
        dcp.load(tensors, checkpoint_id=str(source), no_dist=True)
        yield whole_shard(ours, tensors[theirs].float())


def _one(source: Path, stored: dict, what: str, ends: tuple[str, ...]) -> str:
    """The key that is one of `ends`, or has it after a prefix."""
    found = [key for key in stored if key in ends] or [k for k in stored if k.endswith(tuple(f".{e}" for e in ends))]
    if len(found) != 1:
        raise ValueError(f"{source} has {len(found)} tensors for {what}; it holds {', '.join([*stored][:5])}, ...")
    return found[0]


def _from_deepspeed(source: Path, universal: Path, shapes: Shapes, other_names: set[str]) -> Iterator[TensorShard]:
    """Converts to DeepSpeed's universal format first, in which each parameter has a folder."""
    tool = "from deepspeed.checkpoint.ds_to_universal import main, parse_arguments; main(parse_arguments())"
    line = [sys.executable, "-c", tool, "--input_folder", str(source), "--output_folder", str(universal)]
    result = subprocess.run([*line, "--inject_missing_state"], capture_output=True, text=True)
    if result.returncode:
        raise ValueError(f"DeepSpeed cannot convert {source}: {result.stderr.strip().splitlines()[-1]}")
    folders = {path.name.removeprefix("module."): path for path in (universal / "zero").iterdir() if path.is_dir()}
    folders = {name: path for name, path in folders.items() if name not in other_names}
    if odd := sorted(folders.keys() ^ shapes.keys()):
        raise ValueError(f"{source} is of another model; on one side only: {', '.join(odd[:5])}")
    for name, folder in folders.items():
        for ours, file in ((f"model/{name}", "fp32"), *((f"optimizer/{s}/{name}", s) for s in STATES)):
            tensor = torch.load(folder / f"{file}.pt", weights_only=True, map_location="cpu")
            tensor = tensor["param"] if isinstance(tensor, dict) else tensor
            if tensor.numel() != torch.Size(shapes[name]).numel():
                raise ValueError(f"{source}: {name} is {[*tensor.shape]} there and {[*shapes[name]]} here")
            yield whole_shard(ours, tensor.float().reshape(shapes[name]))
