"""Settings of torch and of the libraries below it that hold for a whole process. A run sets them, and its end takes
them back: in a notebook the process goes on.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

FLIGHT_RECORDER = "flight-recorder"
"""Folder in that of the run, for what NCCL's flight recorder writes."""


@contextmanager
def deterministic_operators() -> Iterator[None]:
    """Context in which torch uses only operators that give the same bits each time.

    An operator that has no such form raises a RuntimeError. On CUDA these settings make cuBLAS, cuDNN, the gradients of
    embeddings and of indexing, and the backward pass of flash attention (SDPA and varlen) deterministic.
    """
    import torch

    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, fill = torch.backends.cudnn.benchmark, memory.fill_uninitialized_memory
    # cuBLAS reads it when it is first used in the process.
    with environment({"CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8")}):
        try:
            torch.use_deterministic_algorithms(True, warn_only=False)
            torch.backends.cudnn.benchmark = False
            memory.fill_uninitialized_memory = False  # a fill of each new tensor finds bugs only
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.backends.cudnn.benchmark = benchmark
            memory.fill_uninitialized_memory = fill


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Context with these variables of the environment."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def flight_recorder(folder: Path, entries: int) -> dict[str, str]:
    """The variables with which NCCL's process groups, made afterwards, remember their last collectives.

    Read from torch 2.11 and 2.13: ProcessGroupNCCL.hpp and FlightRecorder.hpp. 2.13 has the new names too. A variable
    that the user has set stays.

    Args:
        folder: where each rank writes a file, named by its number, if a collective takes too long.
        entries: how many collectives each rank remembers.
    """
    wanted = {
        "TORCH_NCCL_TRACE_BUFFER_SIZE": str(entries),
        "TORCH_FR_BUFFER_SIZE": str(entries),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(folder.absolute() / "rank_"),
        "TORCH_FR_DUMP_TEMP_FILE": str(folder.absolute() / "rank_"),
    }
    return {name: value for name, value in wanted.items() if name not in os.environ}


@contextmanager
def torch_settings(
    *, deterministic: bool, compile_cache: str | None, flight_recorder_folder: Path, flight_recorder_entries: int
) -> Iterator[None]:
    """Context with the settings of a run. It has to begin before the process group is made.

    Args:
        compile_cache: folder for compiled code; None leaves torch's own.
    """
    with ExitStack() as stack:
        variables: dict[str, str] = {}
        if flight_recorder_entries:
            variables |= flight_recorder(flight_recorder_folder, flight_recorder_entries)
        if compile_cache is not None:
            folder = Path(compile_cache).absolute()  # ranks of one machine share it
            variables |= {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}
        stack.enter_context(environment(variables))
        if deterministic:
            stack.enter_context(deterministic_operators())
        yield
