"""From a configuration to what the planner asks: a model's footprint on a rank, and the sizes of a layout."""

import math
from typing import Any

from ingot.launcher.config.pretrain import TrainConfig
from ingot.model.costs.memory import activation_bytes, local_shapes, saved_by_block
from ingot.model.tensor_plan import tensor_plan
from ingot.parallel.memory_plan import PERSISTENT, Footprint, LayoutSizes
from ingot.parallel.mesh_sizes import sizes

Shapes = dict[str, tuple[int, ...]]


def counted_precision(config: TrainConfig) -> str:
    """The configured precision, and for auto bf16: a plan is for devices that compute in it."""
    return config.parallel.precision.replace("auto", "bf16")


def layout_of(config: TrainConfig, world_size: int) -> LayoutSizes:
    """
    Raises:
        ValueError: the sizes do not multiply to `world_size`.
    """
    parallel = config.parallel
    replicas, shard, tensor = sizes(world_size, parallel.tensor, parallel.data_shard)
    num_data = replicas * shard
    return LayoutSizes(
        parallel.engine,
        parallel.zero_stage,
        num_data,
        shard,
        tensor,
        counted_precision(config),
        parallel.offload,
        max(1, config.batch.global_size // num_data // config.batch.micro_size),
        2 if config.optimizer.state_dtype == "bf16" else 4,
        parallel.reduce_dtype,
        parallel.reshard_after_forward,
        parallel.sync_each_micro_batch,
    )


def footprint_of(
    config: TrainConfig, *, shapes: Shapes | None = None, mask: int = 1, recompute_peak: bool = True
) -> Footprint:
    """What the configuration's model has on a tensor rank, with the activations of one micro-batch.

    Args:
        shapes: `local_shapes` of the model, if they are known.
        mask: as in `saved_by_block`.
        recompute_peak: count what one block keeps while it is computed again.
    """
    model, length, tensor = config.model, config.data.sequence_length, config.parallel.tensor
    element = 2 if counted_precision(config) == "bf16" else 4
    rest, small, blocks, work = 0, 0, [0] * model.num_hidden_layers, 0
    ends: dict[str, Any] = {"first": 0, "last": 0}
    tokens = config.batch.micro_size * length
    for name, shape in (shapes or local_shapes(model, tensor)).items():
        count = math.prod(shape)
        small += count * (count < PERSISTENT)
        if name.startswith("blocks."):
            blocks[int(name.split(".")[1])] += count
            if config.parallel.float8 != "none" and len(shape) == 2:  # gradient, weight and input of a layer in float8
                work = max(work, tokens * sum(shape) + count)
            continue
        rest += count
        if not model.tie_word_embeddings:  # as `gathered_together` in launcher/training/build.py
            ends["first"] += count * name.startswith(("embedding.token", "embedding.position"))
            ends["last"] += count * name.startswith(("final_norm.", "head."))
    targets = 1.0 if config.data.objective == "clm" else config.data.mlm_probability
    common: dict[str, Any] = {"sequence_length": length, "tensor": tensor, "element": element, "mask": mask}
    parallel, how = config.parallel, config.parallel.activation_checkpointing
    activations = activation_bytes(
        model,
        tokens=tokens,
        activation_checkpointing=how,
        every=parallel.activation_checkpointing_every,
        budget=parallel.activation_memory_budget,
        offload=parallel.activation_offload,
        targets=targets,
        **common,
    )
    if how != "none" and not recompute_peak:
        activations -= tokens * sum(saved_by_block(model, **common).values())
    # Forward and backward gather all tokens before attention and MLP, and scatter sums behind them.
    passes = 8 if how == "none" else 8 + 2 / parallel.activation_checkpointing_every
    sent = tokens * model.hidden_size * (tensor - 1) / tensor
    exchanged = passes * element * sent
    # The embedding is summed and later gathered, the last hidden states are gathered, and their fp32 gradients reduced.
    head = 4 if ("head", ("only_head", 0)) in tensor_plan(model) else 8 * targets
    ends |= {"exchanged_by_ends": (4 * element + head) * sent}
    return Footprint(max(blocks), model.num_hidden_layers, rest, small, activations, exchanged, work, **ends)
