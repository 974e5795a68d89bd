"""The setup of every run: its ranks, its folder, its loggers, and the metadata of its checkpoints."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO, TypeVar

import torch
import torch.distributed as dist

from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.durable_files import replace_folder, write_atomically
from ingot.launcher.config import parser
from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.runtime.device import computes_in_bf16, float8_problem
from ingot.launcher.runtime.exit_codes import BadInput
from ingot.launcher.runtime.peer_watchdog import PeerWatchdog
from ingot.launcher.runtime.run_lock import lock
from ingot.launcher.runtime.torch_settings import FLIGHT_RECORDER, torch_settings
from ingot.launcher.training.callbacks.callback import Callbacks
from ingot.launcher.training.callbacks.registry import loggers
from ingot.launcher.training.common_values import common_values
from ingot.launcher.training.job import Job
from ingot.launcher.training.progress import Progress
from ingot.parallel import mesh as meshes
from ingot.parallel.device_check import check_devices
from ingot.parallel.mesh import Mesh
from ingot.parallel.torch_compat import has_triton

Config = TypeVar("Config", TrainConfig, FinetuneConfig)
T = TypeVar("T")

LONG_RUN = 500
"""Steps from which on auto compiles: it takes up to a minute, and saves a fifth to a third of each step on a GPU."""


def run_folder(config: TrainConfig | FinetuneConfig) -> Path:
    """The folder of a run."""
    return Path(config.run.dir) / config.run.name


@contextmanager
def rank_group(config: TrainConfig | FinetuneConfig) -> Iterator[PeerWatchdog]:
    """Context of a command with several ranks: has the run's settings of torch, watches the other ranks, and stops the
    process group at the end."""
    parallel = config.parallel
    settings = torch_settings(
        deterministic=config.run.deterministic,
        compile_cache=parallel.compile_cache,
        flight_recorder_folder=run_folder(config) / FLIGHT_RECORDER,
        flight_recorder_entries=parallel.flight_recorder,
    )
    try:
        with settings, PeerWatchdog() as watchdog:
            yield watchdog
    finally:
        meshes.stop()  # threads of a process group that still runs can abort the process when it exits


def start_mesh(config: Config, watchdog: PeerWatchdog, files: dict[str, str]) -> tuple[Mesh, Config]:
    """Connects to the other ranks and makes the mesh. Each rank must call it.

    Args:
        files: what identifies the files of the run, which all ranks must have in common, by name.

    Raises:
        ValueError: the ranks do not meet, or have other options, versions or files; raised on all of them.

    Returns:
        The mesh, and the configuration, with what all ranks have decided instead of `auto`: precision and compilation.
    """
    parallel = config.parallel
    mesh = meshes.start(
        config.run.device,
        parallel.timeout_seconds,
        parallel.tensor,
        parallel.data_shard,
        parallel.rendezvous_seconds,
        common_values(config, files),
        parallel.init_timeout_seconds,
    )
    watchdog.connect(mesh.rank, mesh.world_size)
    problems = [int(not computes_in_bf16(mesh.device)), int(bool(why_not_compiled(config, mesh.device)))]
    lacks_bf16, lacks_compiler = meshes.sum_over_ranks(problems)
    if parallel.precision == "auto":
        parallel = replace(parallel, precision="fp32" if lacks_bf16 else "bf16")
    if parallel.compile == "auto":
        parallel = replace(parallel, compile=not lacks_compiler)
    if parallel.float8 != "none":
        _check_float8(mesh, parallel.precision)
    return mesh, replace(config, parallel=parallel)


def _check_float8(mesh: Mesh, precision: str) -> None:
    """
    Raises:
        ValueError: on all ranks, if the device of one of them cannot compute in float8.
    """
    problem = float8_problem(mesh.device, precision)
    if meshes.sum_over_ranks([bool(problem)])[0]:
        raise ValueError(problem or "parallel.float8: the device of another rank cannot compute in it; set it to none")


def why_not_compiled(config: TrainConfig | FinetuneConfig, device: torch.device) -> str:
    """Why parallel.compile auto does not compile here; empty if it does."""
    parallel = config.parallel
    if parallel.engine == "zero" and parallel.zero_stage == 3:
        return "ZeRO-3 has hooks inside the blocks"
    if parallel.activation_checkpointing == "memory_budget":
        return ""  # it is the compiler that keeps to the budget
    if device.type != "cuda" or not has_triton():
        return "there is no GPU with Triton"
    if isinstance(config, FinetuneConfig):
        return "the shapes of fine-tuning batches differ too much"
    if config.run.num_steps < LONG_RUN:
        return f"the run has fewer than {LONG_RUN} steps"
    return ""


class RunLock:
    """A lock on the folder of a run. Only rank 0 holds it, until `close`."""

    def __init__(self, folder: Path):
        """Locks the folder if it exists.

        Raises:
            ValueError: another run holds the lock.
        """
        self.folder = folder
        self._file: TextIO | None = None
        if folder.is_dir():
            self.take()

    def take(self) -> None:
        """Locks the folder, if it is not locked yet.

        Raises:
            ValueError: another run holds the lock.
        """
        if self._file is None and int(os.environ.get("RANK", 0)) == 0:
            self._file = lock(self.folder)

    def close(self) -> None:
        """Releases the lock."""
        if self._file is not None:
            self._file.close()


def open_folder(config: TrainConfig | FinetuneConfig, tokenizer: Tokenizer, mesh: Mesh, run_lock: RunLock) -> None:
    """Makes the folder of the run, with config.yaml and the tokenizer. Only rank 0 writes.

    The folder with a checkpoint is all that is needed to use the model.

    Raises:
        BadInput: on all ranks, if another run holds the lock or the folder cannot be written.
    """

    def write() -> None:
        run_folder(config).mkdir(parents=True, exist_ok=True)
        run_lock.take()
        restore_folder(config, tokenizer)

    on_main_rank(mesh, write)


def restore_folder(config: TrainConfig | FinetuneConfig, tokenizer: Tokenizer) -> None:
    """Writes config.yaml and the tokenizer into the folder of the run, which is made if it is gone.

    Raises:
        OSError: it cannot be written. What was there before is still there.
    """
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", parser.to_yaml(config))
    replace_folder(folder / "tokenizer", tokenizer.save)


def on_main_rank(mesh: Mesh, action: Callable[[], T]) -> T | None:
    """Calls `action` on rank 0. Each rank must call it. Returns its result on rank 0, and None on the others.

    Raises:
        BadInput: on all ranks, if `action` raises a ValueError or an OSError.
    """
    result, problem = None, [""]
    if mesh.is_main:
        try:
            result = action()
        except (ValueError, OSError) as error:
            problem = [str(error)]
    dist.broadcast_object_list(problem)
    if problem[0]:
        raise BadInput(problem[0])
    return result


def open_callbacks(
    config: TrainConfig | FinetuneConfig, mesh: Mesh, progress: Progress, messages: list[str], notes: list[str]
) -> Callbacks:
    """Opens the loggers, and logs the start of the run.

    Args:
        messages: lines about the run.
        notes: lines about the resume, each logged as an event.

    Raises:
        BadInput: on all ranks, if a logger cannot open its file.
    """
    callbacks = Callbacks()
    found = on_main_rank(mesh, lambda: loggers(run_folder(config), steps=config.run.num_steps, step=progress.step))
    callbacks.add(*(found or []))
    compiled = ", compiled" if config.parallel.compile is True else ""
    messages = [*messages, f"{engine_name(config)}{compiled} on {mesh.describe()}"]
    messages += check_devices(mesh) if config.parallel.check_devices else []
    messages += config.optimizer.warmup_notes(config.run.num_steps)
    if config.parallel.precision == "bf16" and not computes_in_bf16(mesh.device):
        messages.append("this device has no instructions for bf16; it is faster with parallel.precision fp32")
    if config.parallel.float8 != "none" and mesh.device.type == "cpu":
        messages.append("a CPU has no instructions for float8; it is slower with parallel.float8 than without")
    for text in messages:
        callbacks.message(text)
    for note in notes:
        callbacks.event(progress.step, note)
    callbacks.event(progress.step, "start", steps=config.run.num_steps, samples=progress.cursor, tokens=progress.tokens)
    return callbacks


def checkpoint_metadata(job: Job, mesh: Mesh) -> dict:
    """What the checkpoints of a run contain in addition to its progress and lineage."""
    config, frozen = job.config, job.engine.frozen_digests
    return {
        "data": job.data_stamp,
        "tokenizer_sha256": job.tokenizer.sha256,
        "tokenizer_files_sha256": job.tokenizer.files_sha256,
        "layout": {
            "engine": engine_name(config),
            "data_replicate": mesh.num_data // mesh.data_shard,
            "data_shard": mesh.data_shard,
            "tensor": mesh.tensor,
        },
        "config": config.to_dict(),
        **({"frozen": frozen} if frozen else {}),
        **job.metadata,
    }


def engine_name(config: TrainConfig | FinetuneConfig) -> str:
    """The name of the engine and its precision, for people."""
    name = f"DeepSpeed ZeRO-{config.parallel.zero_stage}" if config.parallel.engine == "zero" else "torch"
    float8 = config.parallel.float8
    return f"{name}, {config.parallel.precision}" + (f", float8 {float8}" if float8 != "none" else "")
