"""What each training run begins with, whatever it trains: the mesh, the run's folder, and what its checkpoints say."""

import shutil
from pathlib import Path
from typing import TextIO

from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.config import parser
from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.runtime.device import computes_in_bf16
from ingot.launcher.runtime.exit_codes import bad_input
from ingot.launcher.runtime.peer_watchdog import Lifeline
from ingot.launcher.runtime.run_lock import lock
from ingot.launcher.training.logger import Metrics
from ingot.launcher.training.trainer import Progress
from ingot.parallel import mesh as meshes
from ingot.parallel.mesh import Mesh

Config = TrainConfig | FinetuneConfig


def folder_of(config: Config) -> Path:
    return Path(config.run.dir) / config.run.name


def start_mesh(config: Config, lifeline: Lifeline) -> Mesh:
    """Meets the other ranks, ties this one to them, and settles on a precision. Each rank must call it."""
    parallel = config.parallel
    mesh = meshes.start(
        config.run.device,
        parallel.timeout_seconds,
        parallel.tensor,
        parallel.data_shard,
        parallel.rendezvous_seconds,
    )
    lifeline.tie(mesh.rank, mesh.world_size)
    if parallel.precision == "auto":
        [lacking] = meshes.sum_over_ranks([int(not computes_in_bf16(mesh.device))])
        parallel.precision = "fp32" if lacking else "bf16"
    return mesh


def open_run(
    config: Config,
    tokenizer: Tokenizer,
    mesh: Mesh,
    held: TextIO | None,
    progress: Progress,
    said: list[str],
    notes: list[str],
) -> tuple[Metrics, TextIO | None]:
    """Makes the run's folder on rank 0, with config.yaml and the tokenizer: with a checkpoint this is all that using
    the model needs. The metrics, and the lock of the folder.

    Args:
        held: the lock, where the folder was there before.
        said: what the log shall say of the run.
        notes: what a resume had to say.
    """
    folder = folder_of(config)
    if mesh.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        with bad_input():
            held = held or lock(folder)
        (folder / "config.yaml").write_text(parser.to_yaml(config))
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
        tokenizer.save(folder / "tokenizer")
    metrics = Metrics(folder if mesh.is_main else None, steps=config.run.steps, step=progress.step)
    said = [*said, f"{engine_name(config)} on {mesh.describe()}"]
    if config.parallel.precision == "bf16" and not computes_in_bf16(mesh.device):
        said.append("this device has no instructions for bf16, and computes faster in fp32 (parallel.precision)")
    for text in said:
        metrics.say(text)
    for note in notes:
        metrics.event(progress.step, note)
    metrics.event(progress.step, "start", steps=config.run.steps, samples=progress.cursor, tokens=progress.tokens)
    return metrics, held


def about_checkpoints(config: Config, stamp: dict, tokenizer: Tokenizer, mesh: Mesh) -> dict:
    """What the checkpoints of a run say besides its progress."""
    return {
        "data": stamp,
        "tokenizer_sha256": tokenizer.sha256,
        "layout": {
            "engine": engine_name(config),
            "data_replicate": mesh.num_data // mesh.shard,
            "data_shard": mesh.shard,
            "tensor": mesh.tensor,
        },
        "config": config.to_dict(),
    }


def engine_name(config: Config) -> str:
    name = f"DeepSpeed ZeRO-{config.parallel.zero_stage}" if config.parallel.engine == "zero" else "torch"
    return f"{name}, {config.parallel.precision}"
