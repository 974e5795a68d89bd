"""The search behind `launcher/plan.py`: all layouts, what each takes, and how long a step should last."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ingot.launcher.config.parallel import Parallel
from ingot.launcher.config.plan import Plan
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.planning.dry_run import NOT_COUNTED
from ingot.launcher.planning.footprint import footprint_of, layout_of
from ingot.model.costs.flops import flops_per_token
from ingot.model.costs.memory import local_shapes
from ingot.model.tensor_plan import tensor_problems
from ingot.parallel.memory_plan import LayoutSizes, Memory, memory, traffic


@dataclass(frozen=True)
class Candidate:
    """A layout with its settings, its memory, and the estimate of a step's seconds."""

    layout: LayoutSizes
    activation_checkpointing: str
    micro_batch: int
    memory: Memory
    seconds: float
    sent: float

    @property
    def settings(self) -> str:
        layout = self.layout
        parts = [f"engine {layout.engine}"]
        parts += [f"zero_stage {layout.stage}"] if layout.engine == "zero" else [f"data_shard {layout.data_shard}"]
        parts += [f"tensor {layout.tensor}"] * (layout.tensor > 1)
        return ", ".join(
            [*parts, f"activation_checkpointing {self.activation_checkpointing}", f"micro_size {self.micro_batch}"]
        )


def check(config: TrainConfig) -> None:
    """
    Raises:
        ValueError: the model's options do not fit together, or a sequence is longer than the model's positions.
    """
    config.model.validate()
    length, longest = config.data.sequence_length, config.model.max_position_embeddings
    if length > longest:
        raise ValueError(
            f"data.sequence_length {length} is beyond the model's {longest} positions; shorten it or raise "
            f"model.max_position_embeddings"
        )


def search(config: TrainConfig, devices: Plan) -> list[str]:
    """The best layouts as lines of a table, fastest first; where none fits, those that come nearest."""
    found = list(candidates(config, devices))
    if not found:
        raise ValueError(
            f"no layout of {devices.ranks} ranks divides batch.global_size {config.batch.global_size}; make it a "
            f"multiple of the data ranks"
        )
    room = devices.memory_gb * 1e9 * (1 - NOT_COUNTED)
    fitting = sorted((c for c in found if c.memory.total <= room), key=_preference)
    tokens = config.batch.global_size * config.data.sequence_length
    lines = [
        f"{len(found)} layouts of {devices.ranks} ranks, {len(fitting)} fit into {devices.memory_gb:g} GB "
        f"({NOT_COUNTED:.0%} left for what is not counted)"
    ]
    shown = fitting[: devices.top] or sorted(found, key=lambda c: c.memory.total)[:3]
    if not fitting:
        lines.append("none fits; the nearest are")
    heads = f"{'GB':>7} {'states':>7} {'activ.':>7} {'step s':>8} {'tokens/s':>10}"
    lines.append(f"  {heads}  layout: settings of parallel and batch")
    for c in shown:
        lines.append(
            f"  {c.memory.total / 1e9:7.1f} {c.memory.states / 1e9:7.1f} {c.memory.activations / 1e9:7.1f} "
            f"{c.seconds:8.3f} {tokens / c.seconds:10,.0f}  {c.layout.name}: {c.settings}"
        )
    return lines


def _preference(candidate: Candidate) -> tuple:
    """The fastest; of those alike, larger micro-batches, then less communication, then less memory."""
    return (round(candidate.seconds, 3), -candidate.micro_batch, candidate.sent, candidate.memory.total)


def candidates(config: TrainConfig, devices: Plan) -> Iterator[Candidate]:
    """Every layout that the engines can do and that divides the batch."""
    per_token = flops_per_token(config.model, config.data.sequence_length)
    for tensor in _powers_of_two(min(devices.devices_per_node, devices.ranks)):
        if devices.ranks % tensor or (
            tensor > 1 and tensor_problems(config.model, tensor, config.data.sequence_length)
        ):
            continue
        shapes = local_shapes(config.model, tensor)
        for variant in _variants(config, tensor, devices):
            footprint = footprint_of(variant, shapes=shapes)
            layout = layout_of(variant, devices.ranks)
            need = memory(footprint, layout)
            how = variant.parallel.activation_checkpointing
            flops = per_token * config.batch.global_size * config.data.sequence_length / devices.ranks
            # A full recomputation does the forward pass again, a third of the step; a selective one little of it.
            compute = flops * {"none": 1.0, "selective": 1.04, "full": 4 / 3}[how] / (devices.tflops * 1e12)
            sent = traffic(footprint, layout)
            within = layout.num_data * tensor <= devices.devices_per_node
            speed = devices.node_gb_per_second if within else devices.network_gb_per_second
            # Most exchanges with data ranks run beside the computation, those with tensor ranks before and after it.
            beside = max(compute, (sent.data - sent.exposed) / (speed * 1e9))
            seconds = beside + sent.exposed / (speed * 1e9) + sent.tensor / (devices.node_gb_per_second * 1e9)
            yield Candidate(layout, how, variant.batch.micro_size, need, seconds, sent.data + sent.tensor)


def _variants(config: TrainConfig, tensor: int, devices: Plan) -> Iterator[TrainConfig]:
    num_data = devices.ranks // tensor
    share, rest = divmod(config.batch.global_size, num_data)
    if rest or not share:
        return
    engines: list[tuple[Any, Any, int | None]] = [("zero", stage, None) for stage in range(4)]
    inner = max(1, devices.devices_per_node // tensor)
    shards = sorted({1, num_data, *([inner] if num_data % inner == 0 else [])})
    engines += [("fsdp", 1, shard) for shard in shards]
    asynchronous = config.parallel.async_tensor_parallel and tensor > 1
    only_fsdp = ("reshard_after_forward", "sync_each_micro_batch", "symmetric_memory")
    defaults = {name: getattr(Parallel, name) for name in only_fsdp}
    for engine, stage, shard in engines:
        for checkpointing in ("none", "selective", "full"):
            for micro in (m for m in _powers_of_two(share) if share % m == 0):
                parallel = replace(
                    config.parallel,
                    engine=engine,
                    zero_stage=stage,
                    data_shard=shard,
                    tensor=tensor,
                    activation_checkpointing=checkpointing,
                    activation_checkpointing_every=1,
                    activation_offload=False,
                    async_tensor_parallel=asynchronous,
                    **(defaults if engine == "zero" else {}),
                )
                if not parallel.problems():
                    yield replace(config, parallel=parallel, batch=replace(config.batch, micro_size=micro))


def _powers_of_two(most: int) -> list[int]:
    return [1 << n for n in range(most.bit_length()) if 1 << n <= most]
