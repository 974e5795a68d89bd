"""How much memory and communication a layout takes: arithmetic on sizes, without torch and before anything is started.

Sources: ZeRO (arXiv 1910.02054, section 3 and 5) for states, arXiv 2205.05198 for tensor and sequence parallelism.
`benchmarks/memory.py` holds it against what engines hold.
"""

from dataclasses import dataclass, fields

BUCKET = 50_000_000
"""Elements that DeepSpeed reduces at once, in a buffer of as many fp32 numbers. Its own default takes 2 GB for it."""
PERSISTENT = 100_000
"""Parameters of fewer elements are kept whole by ZeRO-3 (its own default)."""


@dataclass(frozen=True)
class Footprint:
    """What one tensor rank has of a model, and what a micro-batch leaves there.

    Attributes:
        block, rest: parameters of one block, and outside of the blocks.
        small: parameters in tensors of fewer than `PERSISTENT` elements.
        activations: bytes kept from forward to backward.
        exchanged: bytes that a block of a micro-batch sends to the other tensor ranks, forward and backward.
    """

    block: int
    num_blocks: int
    rest: int
    small: int
    activations: float
    exchanged: float = 0.0

    @property
    def parameters(self) -> int:
        return self.num_blocks * self.block + self.rest


@dataclass(frozen=True)
class LayoutSizes:
    """A layout. `shard` is the number of data ranks over which engine `fsdp` cuts; ZeRO cuts over all `num_data`."""

    engine: str
    stage: int
    num_data: int
    shard: int
    tensor: int
    precision: str = "bf16"
    offload: str = "none"
    accumulation: int = 1

    @property
    def name(self) -> str:
        if self.engine == "zero":
            kind = f"ZeRO-{self.stage}"
        elif self.shard == 1:
            kind = "replicas"
        else:
            kind = "FSDP2" if self.shard == self.num_data else f"HSDP {self.num_data // self.shard}x{self.shard}"
        return kind + (f" x tensor {self.tensor}" if self.tensor > 1 else "")


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank's device, by part."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float

    @property
    def states(self) -> float:
        return self.parameters + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def zero_states(
    parameters: float, num_data: int, stage: int, *, weight: int = 2, gradient: int = 2, optimizer: int = 12
) -> tuple[float, float, float]:
    """Bytes of parameters, gradients and optimizer on a rank: ZeRO's arithmetic, with the bytes of each per parameter.

    The optimizer's 12 are fp32 master weights and AdamW's two moments.
    """
    parts = [1 / num_data if stage >= needed else 1.0 for needed in (3, 2, 1)]
    return tuple(parameters * size * part for size, part in zip((weight, gradient, optimizer), parts, strict=True))


def memory(footprint: Footprint, layout: LayoutSizes) -> Memory:
    """Bytes on a rank's device at the end of a backward pass, when most of it is there at once.

    Gradients are fp32 in every engine, so ZeRO's 2 for them become 4. Engines without a cut of the parameters
    (replicas, ZeRO-0) keep fp32 parameters and, in bf16, rounded copies while they compute.
    """
    count, low = footprint.parameters, layout.precision == "bf16"
    if layout.engine == "fsdp" or layout.stage == 0:
        shard = layout.shard if layout.engine == "fsdp" else 1
        states = [4 * count / shard, 4 * count / shard, 8 * count / shard]
        buffers = _whole_buffers(footprint, layout, low) if shard == 1 else _gathered(footprint, low)
    else:
        weight = 2 if low else 4
        states = list(zero_states(count, layout.num_data, layout.stage, weight=weight, gradient=4))
        buffers = 4.0 * min(BUCKET, count)
        if layout.stage == 1:
            buffers += weight * min(footprint.rest + footprint.block, count)  # gradients until they are added up
        if layout.stage == 3:
            buffers += weight * (footprint.small * (1 - 1 / layout.num_data) + 2 * footprint.block + footprint.rest)
    if layout.offload != "none":
        states[2] = 0.0
    if layout.offload == "all":
        states = [0.0, 0.0, 0.0]
    return Memory(*states, footprint.activations, buffers)


def _whole_buffers(footprint: Footprint, layout: LayoutSizes, low: bool) -> float:
    reduced = 4.0 * min(BUCKET, footprint.parameters) if layout.num_data > 1 else 0.0
    return reduced + (2.0 * footprint.parameters if low else 0.0)


def _gathered(footprint: Footprint, low: bool) -> float:
    """What FSDP2 gathers: the block in work and the next one, what is outside of blocks, and one block's gradients."""
    size = 2 if low else 4
    return size * (2 * footprint.block + footprint.rest) + (size + 4.0) * max(footprint.block, footprint.rest)


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in an optimizer step: to data ranks, and to tensor ranks."""

    data: float
    tensor: float


def traffic(footprint: Footprint, layout: LayoutSizes) -> Traffic:
    """What ring collectives send: (n - 1) / n of the gathered or reduced bytes, twice that for an all-reduce."""
    count, weight = footprint.parameters, 2 if layout.precision == "bf16" else 4
    around = (layout.num_data - 1) / layout.num_data
    if layout.engine == "fsdp" and layout.shard > 1:
        replicas = layout.num_data // layout.shard
        within = (layout.shard - 1) / layout.shard
        sent = layout.accumulation * (2 * weight + 4) * count * within  # gathered twice, reduced once
        sent += 2 * (replicas - 1) / replicas * 4 * count / layout.shard
    elif layout.engine == "fsdp" or layout.stage == 0:
        sent = 2 * around * 4 * count
    elif layout.stage == 1:
        sent = around * (4 + weight) * count
    elif layout.stage == 2:
        sent = around * (layout.accumulation * 4 + weight) * count
    else:
        sent = around * layout.accumulation * (2 * weight + 4) * count
    return Traffic(sent, layout.accumulation * footprint.num_blocks * footprint.exchanged)
