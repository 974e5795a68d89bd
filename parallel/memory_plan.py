"""How much memory and communication a layout needs: arithmetic on sizes, without torch, before a run is started.

Sources: ZeRO (arXiv 1910.02054, sections 3 and 5) for states, arXiv 2205.05198 for tensor and sequence parallelism.
`benchmarks/memory.py` compares the plan with what the engines hold.
"""

from dataclasses import dataclass, fields

BUCKET = 50_000_000
"""Elements that DeepSpeed reduces at once, in an fp32 buffer of this size. With its own default the buffer has 2 GB."""
PERSISTENT = 100_000
"""ZeRO-3 does not partition parameters with fewer elements (its own default)."""
REUSED = 500_000_000
"""So many elements, the last ones of the forward pass, stay gathered at ZeRO-3 until the backward pass: their next use
is less than 10^9 elements away (its own default). The others are gathered again."""

MOST_OWNERS = 16
"""Data ranks up to which ZeRO-1 and 2 reduce each gradient to its owner alone. NCCL sends such a reduction from rank to
rank, one owner after the other, so with many ranks an all-reduce is faster, although it sends twice as much."""


def reduces_to_owners(num_data: int) -> bool:
    """Whether ZeRO-1 and 2 reduce gradients to the ranks that own them; otherwise they all-reduce them."""
    return num_data <= MOST_OWNERS


@dataclass(frozen=True)
class Footprint:
    """The part of a model on one tensor rank, and the activations of one micro-batch there.

    Attributes:
        block, rest: number of parameters in one block, and outside of the blocks.
        first, last: those of `rest` that FSDP2 gathers as groups of their own, before and behind the blocks.
        small: number of parameters in tensors of fewer than `PERSISTENT` elements.
        activations: bytes kept from the forward to the backward pass.
        exchanged: bytes that one block sends to the other tensor ranks for one micro-batch, forward and backward.
        work: bytes that one layer needs besides, while it computes.
        exchanged_by_ends: the same for embedding and head.
    """

    block: int
    num_blocks: int
    rest: int
    small: int
    activations: float
    exchanged: float = 0.0
    work: float = 0.0
    first: int = 0
    last: int = 0
    exchanged_by_ends: float = 0.0

    @property
    def parameters(self) -> int:
        return self.num_blocks * self.block + self.rest


@dataclass(frozen=True)
class LayoutSizes:
    """A layout. Engine `fsdp` shards over `data_shard` data ranks, ZeRO over all `num_data`.

    Attributes:
        moment: bytes of a number in each of AdamW's two moments.
    """

    engine: str
    stage: int
    num_data: int
    data_shard: int
    tensor: int
    precision: str = "bf16"
    offload: str = "none"
    accumulation: int = 1
    moment: int = 4
    reduce_dtype: str = "fp32"
    reshard_after_forward: bool = True
    sync_each_micro_batch: bool = True

    @property
    def name(self) -> str:
        if self.engine == "zero":
            kind = f"ZeRO-{self.stage}"
        elif self.data_shard == 1:
            kind = "replicas"
        else:
            replicas = self.num_data // self.data_shard
            kind = "FSDP2" if replicas == 1 else f"HSDP {replicas}x{self.data_shard}"
        return kind + (f" x tensor {self.tensor}" if self.tensor > 1 else "")


@dataclass(frozen=True)
class Memory:
    """Bytes on a rank's device, by part."""

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
    """Bytes of parameters, gradients and optimizer on a rank, by the formulas of the ZeRO paper.

    Args:
        weight, gradient, optimizer: bytes of each per parameter. The 12 of the optimizer are fp32 master weights and
            AdamW's two moments.
    """

    def part(needed: int) -> float:
        return 1 / num_data if stage >= needed else 1.0

    return parameters * weight * part(3), parameters * gradient * part(2), parameters * optimizer * part(1)


def memory(footprint: Footprint, layout: LayoutSizes) -> Memory:
    """Bytes on a rank's device at the end of a backward pass, when most memory is in use.

    Gradients are fp32 in every engine, so they have 4 bytes instead of the 2 of the ZeRO paper. Engines that do not
    partition the parameters (replicas, ZeRO-0) keep fp32 parameters and, in bf16, rounded copies while they compute.
    """
    count, low = footprint.parameters, layout.precision == "bf16"
    if layout.engine == "fsdp" or layout.stage == 0:
        shard = layout.data_shard if layout.engine == "fsdp" else 1
        parameters, gradients, optimizer = 4 * count / shard, 4 * count / shard, 2 * layout.moment * count / shard
        buffers = _unsharded_buffers(footprint, layout, low) if shard == 1 else _gathered(footprint, layout, low)
    else:
        weight = 2 if low else 4
        masters_and_moments = 4 + 2 * layout.moment
        states = zero_states(
            count, layout.num_data, layout.stage, weight=weight, gradient=4, optimizer=masters_and_moments
        )
        parameters, gradients, optimizer = states
        buffers = 4.0 * min(BUCKET, count)
        if layout.stage < 3:
            buffers *= 2  # one is filled while the other is reduced
        if layout.stage == 1:
            # The gradient of one tensor until it is added up, and this rank's part of the reduced gradients.
            buffers += weight * max(footprint.block, footprint.rest) + 4 * count / layout.num_data
        if layout.stage == 3:
            live = min(count, max(REUSED, 2 * footprint.block + footprint.rest))
            buffers += weight * (footprint.small * (1 - 1 / layout.num_data) + live)
    if layout.offload != "none":
        optimizer = 0.0
    if layout.offload == "all":
        parameters = gradients = 0.0
    return Memory(parameters, gradients, optimizer, footprint.activations, buffers + footprint.work)


def _unsharded_buffers(footprint: Footprint, layout: LayoutSizes, low: bool) -> float:
    reduced = 4.0 * min(BUCKET, footprint.parameters) if layout.num_data > 1 else 0.0
    return reduced + (2.0 * footprint.parameters if low else 0.0)


def _gathered(footprint: Footprint, layout: LayoutSizes, low: bool) -> float:
    """What FSDP2 has gathered: the root, and the present group and the next one; and one group's gradients."""
    size, block = 2 if low else 4, footprint.block
    root = footprint.rest - footprint.first - footprint.last
    if layout.reshard_after_forward:
        gathered = root + max(footprint.first + block, footprint.last + 2 * block)
    else:
        gathered = footprint.parameters
    whole = 0.0
    if layout.accumulation > 1 and not layout.sync_each_micro_batch:
        whole = 4.0 * footprint.parameters
    return size * gathered + (size + 4.0) * max(block, root, footprint.first, footprint.last) + whole


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in one optimizer step.

    Attributes:
        data, tensor: to other data ranks, and to other tensor ranks.
        exposed: those of `data` that are sent with no computation beside them: parameters after a step of ZeRO-1 or 2,
            and gradients after a backward pass of ZeRO-0.
    """

    data: float
    tensor: float
    exposed: float = 0.0


def traffic(footprint: Footprint, layout: LayoutSizes) -> Traffic:
    """What ring collectives send: (n - 1) / n of the gathered or reduced bytes, and twice as much for an all-reduce.

    tests/parallel/engines/test_traffic.py counts what the engines send.
    """
    count, weight = footprint.parameters, 2 if layout.precision == "bf16" else 4
    gradient = 2 if layout.reduce_dtype == "bf16" else 4
    times = layout.accumulation
    around = (layout.num_data - 1) / layout.num_data
    exposed = 0.0
    if layout.engine == "fsdp" and layout.data_shard > 1:
        replicas = layout.num_data // layout.data_shard
        within = (layout.data_shard - 1) / layout.data_shard
        # Once in the forward pass. Again in the backward pass: all blocks but the last.
        again = (footprint.num_blocks - 1) * footprint.block if layout.reshard_after_forward else 0
        reductions = times if layout.sync_each_micro_batch else 1
        sent = within * (times * weight * (count + again) + reductions * gradient * count)
        sent += 2 * (replicas - 1) / replicas * gradient * count / layout.data_shard
    elif layout.engine == "fsdp" or layout.stage == 0:
        sent = 2 * around * gradient * count
        exposed = sent if layout.engine == "zero" else 0.0
    elif layout.stage < 3:
        reductions = (1 if layout.stage == 1 else times) * (1 if reduces_to_owners(layout.num_data) else 2)
        exposed = around * weight * count
        sent = around * reductions * gradient * count + exposed
    else:
        partitioned = count - footprint.small
        again = max(0, partitioned - REUSED)
        sent = around * (times * (weight * (partitioned + again) + gradient * count) + weight * footprint.small)
    exchanged = footprint.num_blocks * footprint.exchanged + footprint.exchanged_by_ends
    return Traffic(sent, layout.accumulation * exchanged, exposed)
