"""A dry run: one process prints the memory and communication that a configuration needs on many processes."""

import os

import torch
from torch.distributed.tensor import DTensor

from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.planning.footprint import counted_precision, footprint_of, layout_of
from ingot.launcher.runtime.exit_codes import DONE
from ingot.launcher.training.build import gathered_together
from ingot.launcher.training.run_length import with_steps
from ingot.model.costs.flops import flops_per_token, summary
from ingot.model.huggingface.families.registry import export_note
from ingot.model.tensor_plan import tensor_plan
from ingot.model.transformer import LanguageModel
from ingot.parallel import mesh as meshes
from ingot.parallel.engines.fsdp import Sharding, apply_fsdp
from ingot.parallel.float8.layers import apply_float8
from ingot.parallel.memory_plan import Memory, memory, traffic
from ingot.parallel.tensor_parallel.layers import parallelize_module

NOT_COUNTED = 0.08
"""Share of a device's memory that is left for what the plan does not count: the CUDA context, NCCL's buffers, work
space of operators, and what the allocator cannot use."""


def dry_run(config: TrainConfig, world_size: int) -> int:
    """Prints layout, memory and communication of rank 0, whose part is the largest. Returns the exit code: 0."""
    if int(os.environ.get("RANK", 0)):
        return DONE
    mesh = meshes.fake_mesh(world_size, config.parallel.tensor, config.parallel.data_shard)
    try:
        held = _build(config, mesh)
    finally:
        meshes.stop()
    footprint, layout = footprint_of(config), layout_of(config, world_size)
    need, sent = memory(footprint, layout), traffic(footprint, layout)
    tokens = config.batch.global_size * config.data.sequence_length
    flops = tokens * flops_per_token(config.model, config.data.sequence_length) / world_size
    print(summary(config.model))
    print(export_note(config.model))
    parallel = config.parallel
    checkpointing = f"activation_checkpointing {parallel.activation_checkpointing}"
    if parallel.activation_checkpointing_every > 1:
        checkpointing += f" of every {parallel.activation_checkpointing_every}th block"
    if parallel.activation_checkpointing == "memory_budget":
        checkpointing += f" {parallel.activation_memory_budget:g}"
    checkpointing += ", offloaded" if parallel.activation_offload else ""
    print(f"{layout.name}, {layout.precision}, {checkpointing}, on {mesh.describe()}")
    print(f"built for rank 0: {held:,} parameters")
    print(
        f"a step: {tokens:,} tokens, {layout.accumulation} micro-batch(es) of {config.batch.micro_size} x "
        f"{config.data.sequence_length} tokens a rank, {flops / 1e12:,.4g} TFLOP a rank"
    )
    print(table(need))
    print(f"  sent a step: {sent.data / 1e9:.4g} GB to data ranks, {sent.tensor / 1e9:.4g} GB to tensor ranks")
    print(_verdict(need, config.run.device_memory_gb))
    if config.run.epochs is None:  # a dry run opens no corpora
        for note in config.optimizer.warmup_notes(with_steps(config, []).run.num_steps):
            print(f"  {note}")
    return DONE


def table(need: Memory) -> str:
    """Memory by part, a line each, in 10^9 bytes."""
    parts = ("parameters", "gradients", "optimizer", "activations", "buffers", "total")
    return "\n".join(f"  {part:<12}{getattr(need, part) / 1e9:12.3f} GB" for part in parts)


def _build(config: TrainConfig, mesh: meshes.Mesh) -> int:
    """Parameters that rank 0 keeps, counted on the model itself, cut as a real run cuts it."""
    with torch.device("meta"):
        model = LanguageModel(config.model)
    local_parameters = parallelize_module(model, tensor_plan(config.model), mesh)
    apply_float8(model, tensor_plan(config.model), config.parallel.float8, mesh, local_parameters.slices)
    if config.parallel.engine == "fsdp" and mesh.data_shard > 1:
        apply_fsdp(model, gathered_together(model), mesh, counted_precision(config), Sharding())
    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in model.parameters())
    if config.parallel.engine == "zero" and config.parallel.zero_stage == 3:
        held = sum(-(-p.numel() // mesh.num_data) for p in model.parameters())
    return held


def _verdict(need: Memory, memory_gb: float | None) -> str:
    if memory_gb is None and torch.cuda.is_available():
        memory_gb = torch.cuda.get_device_properties(0).total_memory / 1e9
    if memory_gb is None:
        return "  whether it fits: set run.device_memory_gb"
    room = memory_gb * (1 - NOT_COUNTED) * 1e9
    word = "fits into" if need.total <= room else "does NOT fit into"
    return (
        f"  {word} {memory_gb:g} GB: {need.total / 1e9:.1f} of {room / 1e9:.1f} GB ({NOT_COUNTED:.0%} are left for "
        f"what is not counted)"
    )
