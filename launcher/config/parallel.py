"""The section parallel: how a run is spread over devices, and what goes together."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ingot.launcher.config.schema.types import ClosedUnitInterval, NonNegativeCount, Ranks, Seconds, Size


@dataclass(frozen=True)
class Parallel:
    """How the work is distributed over devices. It changes speed and memory, and of the result only what rounding
    changes."""

    engine: Literal["zero", "fsdp"] = "zero"
    """zero: DeepSpeed ZeRO. fsdp: torch's own."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What engine zero shards over the data ranks. 0: nothing. 1: the optimizer. 2: gradients too. 3: parameters
    too."""
    data_shard: Ranks | None = None
    """Number of data ranks over which engine fsdp shards parameters, gradients and optimizer. null: all of them
    (FSDP2). 1: none (plain data parallel). A number between: the shards are replicated (HSDP)."""
    tensor: Ranks = 1
    """Number of ranks that split each layer by heads and features, and the activations between layers by the sequence.
    The number of data ranks is processes / tensor. It is fast only within one machine."""
    async_tensor_parallel: bool = False
    """With tensor and compile, on GPUs that read each other's memory (NVLink): exchanges among tensor ranks run beside
    the products before or behind them."""
    activation_checkpointing: Literal["none", "selective", "full", "memory_budget"] = "none"
    """Which activations of each block are computed again in the backward pass, to save memory. selective: all except
    matrix products and attention. full: all. memory_budget: what torch.compile chooses so that a share of the memory is
    enough (parallel.activation_memory_budget)."""
    activation_checkpointing_every: Size = 1
    """With selective and full: every so many blocks one is checkpointed, and the others keep everything."""
    activation_memory_budget: ClosedUnitInterval = 0.5
    """Share of the memory of a compiled block's activations that memory_budget may use: 1 is what torch.compile keeps
    by default, 0 is as full."""
    activation_offload: bool = False
    """With full: keep the inputs of the blocks in the host's memory until the backward pass."""
    compile: Literal["auto", True, False] = "auto"
    """Compile each block with torch.compile. This takes a minute at the start and makes steps faster on a GPU. auto: a
    pretraining run of at least 500 steps on GPUs with Triton, outside ZeRO-3."""
    compile_cache: str | None = None
    """Folder for compiled code, where a run that starts again finds it; by default one in /tmp. It should be on a disk
    of the machine, and only you should be able to write to it: what is in it is executed."""
    attn_implementation: Literal[
        "auto", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4"
    ] = "auto"
    """How attention is computed. auto: the fastest that supports the device, the precision and the model; on a Hopper
    GPU FlashAttention 3 and on Blackwell 4 if their packages are installed. The other values are for comparisons: sdpa
    runs everywhere, with a dense mask where sequences are packed. The values agree but for rounding."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in the host's memory instead of the device's. optimizer: the optimizer's states (ZeRO-1 to 3). all:
    parameters too (ZeRO-3 and fsdp)."""
    offload_dir: str | None = None
    """Folder on an NVMe disk that is used instead of the host's memory (ZeRO-3)."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the computation. Master weights and gradient accumulation are fp32 in any case. auto:
    bf16 if every rank's device has instructions for it, otherwise fp32; a dry run assumes bf16."""
    float8: Literal["none", "tensorwise", "rowwise"] = "none"
    """Matrix products of the blocks' linear layers in float8, while training, on GPUs from compute capability 8.9 on
    (Ada, Hopper, Blackwell); best with parallel.compile. tensorwise: one scale for a matrix. rowwise: a scale for each
    row, which is more work and closer to bf16. Weights, optimizer and checkpoints are those of parallel.precision, and
    a resume may change it."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type in which gradients are summed over data ranks. bf16 sends half as much and rounds each sum; gradients of
    micro-batches are still added up in fp32."""
    reshard_after_forward: bool = True
    """With engine fsdp: free the gathered parameters of a block after its forward pass, and gather them again in the
    backward pass. false gathers once, and keeps the whole model in the precision of the computation."""
    sync_each_micro_batch: bool = True
    """With engine fsdp: reduce gradients to their shards after each micro-batch. false reduces once per step, and each
    rank holds the gradients of the whole model in fp32."""
    symmetric_memory: bool = False
    """With engine fsdp on CUDA, torch 2.13: gather parameters from memory that the devices of a machine share."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """More DeepSpeed settings under DeepSpeed's names. Settings that follow from Ingot's options are refused."""
    timeout_seconds: Seconds = 600
    """Time limit of a collective after the first step: a rank that hangs so long ends the run. It holds in all process
    groups."""
    init_timeout_seconds: Seconds = 3600
    """Time limit of a collective until the first step is done (building, loading, compiling), and after a step with an
    evaluation or a save, where all may wait for one rank. Never less than timeout_seconds."""
    flight_recorder: NonNegativeCount = 2000
    """Number of NCCL's last collectives that each rank remembers, and writes into RUN/flight-recorder if one takes
    longer than parallel.timeout_seconds; 0 turns it off (docs/profiling.md)."""
    rendezvous_seconds: Seconds = 300
    """Time limit for the processes of all machines to find each other at the start."""
    check_devices: bool = True
    """At the start, time a matrix product on each rank and a sum over all, and name a rank or machine that is much
    slower than the others. It takes less than 2 seconds; one process alone is not checked."""

    def problems(self) -> list[str]:
        """Combinations that an engine does not support, each with the nearest one that works."""
        problems, stage = self._checkpointing_problems(), self.zero_stage
        if self.async_tensor_parallel and (self.tensor == 1 or self.compile is not True):
            problems.append(
                f"parallel.async_tensor_parallel needs parallel.tensor above 1 and parallel.compile true, and they are "
                f"{self.tensor} and {str(self.compile).lower()}"
            )
        if self.engine == "fsdp":
            if self.offload == "optimizer":
                problems.append("parallel.offload optimizer needs engine zero; engine fsdp has parallel.offload all")
            if self.offload_dir is not None:
                problems.append("parallel.offload_dir needs parallel.engine zero with parallel.zero_stage 3")
            return problems + self._sharding_problems()
        for name in ("reshard_after_forward", "sync_each_micro_batch", "symmetric_memory"):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                problems.append(f"parallel.{name} needs parallel.engine fsdp; leave it out with engine zero")
        if self.data_shard is not None:
            problems.append(
                f"parallel.data_shard is {self.data_shard}, and engine zero cuts over all data ranks; leave it out, or "
                f"set parallel.engine fsdp"
            )
        if stage == 3 and self.activation_checkpointing == "selective":
            problems.append(
                "parallel.activation_checkpointing selective needs the same operators in forward and backward, and "
                "ZeRO-3 gathers differently there; set it to full, or parallel.engine to fsdp"
            )
        if stage == 3 and self.compile is True:
            problems.append(
                "parallel.compile does not go with ZeRO-3, whose hooks it would compile; set parallel.zero_stage to 2, "
                "or parallel.engine to fsdp"
            )
        if (self.offload != "none" and stage == 0) or (self.offload == "all" and stage < 3):
            needed = 3 if self.offload == "all" else 1
            problems.append(f"parallel.offload {self.offload} needs parallel.zero_stage {needed}, which is {stage}")
        if self.offload_dir is not None and (self.offload == "none" or stage < 3):
            problems.append("parallel.offload_dir needs parallel.offload optimizer or all, and parallel.zero_stage 3")
        return problems

    def _sharding_problems(self) -> list[str]:
        problems = []
        if not self.sync_each_micro_batch and self.reduce_dtype == "bf16":
            problems.append(
                "parallel.sync_each_micro_batch false with parallel.reduce_dtype bf16 would add micro-batches up in "
                "bf16; set one of them to its default"
            )
        if not self.sync_each_micro_batch and self.offload == "all":
            problems.append(
                "parallel.sync_each_micro_batch false keeps whole gradients on the device, and parallel.offload all "
                "is for devices without that memory; set one of them to its default"
            )
        return problems

    def _checkpointing_problems(self) -> list[str]:
        how, problems = self.activation_checkpointing, []
        zero_3 = self.engine == "zero" and self.zero_stage == 3
        if how == "memory_budget" and (self.compile is False or zero_3):
            remedy = "set parallel.engine to fsdp" if zero_3 else "set parallel.compile to true"
            problems.append(
                f"parallel.activation_checkpointing memory_budget is a choice of torch.compile; {remedy}, or "
                f"parallel.activation_checkpointing to full"
            )
        if self.activation_checkpointing_every > 1 and how not in ("selective", "full"):
            problems.append(
                f"parallel.activation_checkpointing_every is {self.activation_checkpointing_every}, and "
                f"parallel.activation_checkpointing {how}; set that to selective or full"
            )
        if self.activation_offload and how != "full":
            problems.append(
                f"parallel.activation_offload moves the inputs of checkpointed blocks, and "
                f"parallel.activation_checkpointing is {how}; set that to full"
            )
        return problems
