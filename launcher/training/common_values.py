"""What all ranks of a run must have in common: its configuration, the versions of what computes, and its files."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ingot
from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.pretrain import OF_ONE_MACHINE, TrainConfig

LIBRARIES = ("torch", "deepspeed", "transformers", "tokenizers", "sentencepiece", "peft", "numpy")


def common_values(config: TrainConfig | FinetuneConfig, files: dict[str, str]) -> dict[str, str]:
    """By name, as text: each option but those of one machine, each version, and `files`."""
    options = {name: value for name, value in _leaves(config.to_dict(), "") if name not in OF_ONE_MACHINE}
    versions = {f"the version of {name}": _version(name) for name in LIBRARIES}
    return {**options, **versions, "the source of Ingot": source_digest()[:16], **files}


def start_files(checkpoints: Sequence[Path], *models: str | None) -> dict[str, str]:
    """What a run starts from, as each rank sees it.

    Args:
        checkpoints: of the run, to resume from.
        models: paths of other models that the run opens.
    """
    found = {"the run's checkpoints": ", ".join(path.name for path in checkpoints) or "none"}
    for model in models:
        if model:
            found[f"the model {model}"] = model_identity(Path(model))
    return found


def model_identity(path: Path) -> str:
    """A hash of what describes the model in a folder, and the sizes of its files of weights."""
    digest = hashlib.sha256()
    names = ("config.json", "manifest.json", "checkpoints/LATEST", "LATEST")
    for file in sorted(path.glob("*")) + sorted(path.glob("checkpoints/*")):
        if file.is_file() and (str(file.relative_to(path)) in names or file.suffix in (".safetensors", ".bin")):
            content = file.read_bytes() if str(file.relative_to(path)) in names else b""
            digest.update(json.dumps([file.name, file.stat().st_size, content.decode(errors="replace")]).encode())
    return digest.hexdigest()[:16]


@cache
def source_digest() -> str:
    """sha256 of the names and contents of all files of the package: clones of two commits may have one version."""
    digest = hashlib.sha256()
    for root in dict.fromkeys(Path(place).resolve() for place in ingot.__path__):
        for room in ("", "launcher", "model", "data", "parallel"):
            for file in sorted((root / room).rglob("*.py") if room else root.glob("*.py")):
                digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _leaves(value: object, name: str) -> Iterator[tuple[str, str]]:
    """The dotted names and the values below `value`, as JSON; empty lists and mappings too."""
    parts: list[tuple[str, object]] = []
    if isinstance(value, dict):
        parts = [(f"{name}.{key}".lstrip("."), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        parts = [(f"{name}[{number}]", item) for number, item in enumerate(value)]
    if not parts:
        yield name, json.dumps(value)
    for part, item in parts:
        yield from _leaves(item, part)


@cache
def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
