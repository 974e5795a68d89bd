"""How to install a package that is missing.

Like `ingot.safe_files`, a module that all rooms may import. It imports none of them, and nothing but Python's own.
"""

import os
import shlex
import sys
from pathlib import Path
from types import TracebackType

BAD_INPUT = 2

# Modules that are imported, and the packages of pyproject.toml that they are in.
MODULES = {
    "aiohttp": "aiohttp",
    "datasets": "datasets",
    "datasketch": "datasketch",
    "deepspeed": "deepspeed",
    "docstring_parser": "docstring-parser",
    "fsspec": "fsspec",
    "gcsfs": "gcsfs",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "peft": "peft",
    "rouge_score": "rouge-score",
    "s3fs": "s3fs",
    "sacrebleu": "sacrebleu",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sentencepiece": "sentencepiece",
    "seqeval": "seqeval",
    "sklearn": "scikit-learn",
    "tensorboard": "tensorboard",
    "torch": "torch",
    "torchao": "torchao",
    "tqdm": "tqdm",
    "transformers": "transformers",
    "webdataset": "webdataset",
    "yaml": "PyYAML",
    "zstandard": "zstandard",
}
EXTRAS = {"datasketch": "dedup", "torchao": "int8", "aiohttp": "remote", "s3fs": "remote", "gcsfs": "remote"}
"""Packages that only some uses need, and the extra of pyproject.toml that they are in."""


def how_to_install(package: str) -> str:
    """The command that installs a package into this Python: the extra that has it, or else Ingot with all it needs."""
    clone = Path(__file__).resolve().parents[1]
    whole = str(clone) if (clone / "pyproject.toml").is_file() else "ingot"
    if package in EXTRAS:
        whole = f"{whole}[{EXTRAS[package]}]"
    elif package not in MODULES.values():
        whole = package
    return shlex.join([sys.executable, "-m", "pip", "install", whole])


def missing(error: ImportError) -> str | None:
    """The message for a package that is not installed; None for any other error of an import."""
    if not isinstance(error, ModuleNotFoundError) or error.name not in MODULES:
        return None
    package = MODULES[error.name]
    activate = Path(__file__).resolve().parents[1] / ".venv/bin/activate"
    here = Path(sys.prefix) == activate.parents[1]
    first = f"activate the environment (source {activate}), or " if activate.is_file() and not here else ""
    return f"the package {package} is not installed for {sys.executable}: {first}run {how_to_install(package)}"


def report_missing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For `sys.excepthook`: a missing package ends a command as bad input does, also while the command is imported."""
    message = missing(error) if isinstance(error, ImportError) else None
    if message is None or os.environ.get("INGOT_TRACEBACK") == "1":
        sys.__excepthook__(kind, error, trace)
        return
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(BAD_INPUT)
