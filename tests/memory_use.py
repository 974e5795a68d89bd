"""The memory that an engine really holds, counted from the tensors that exist, and the plan's figures."""

import gc
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from ingot.launcher.config.optimizer import Optimizer
from ingot.launcher.config.parallel import Parallel
from ingot.launcher.config.pretrain import Batch, Data, TrainConfig
from ingot.launcher.planning.footprint import footprint_of, layout_of
from ingot.launcher.training.build import build_pretraining_engine
from ingot.model.config import ModelConfig
from ingot.parallel.engines.engine import Engine
from ingot.parallel.memory_plan import BUCKET, memory
from ingot.parallel.mesh import Mesh
from tests.layouts import Layout, shape_of

LENGTH, ROWS = 128, 8
_COMMON: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "vocab_size": 4096,
    "max_position_embeddings": LENGTH,
}
MODELS = {
    "gpt2": ModelConfig(**_COMMON),
    "gpt2 with dropout": ModelConfig(**_COMMON, dropout=0.1),
    "llama": ModelConfig(
        **_COMMON,
        num_key_value_heads=2,
        intermediate_size=512,
        positions="rotary",
        norm="rmsnorm",
        activation="silu",
        gated_mlp=True,
        bias=False,
        tie_word_embeddings=False,
    ),
    "bert": ModelConfig(
        **_COMMON, causal=False, norm_placement="post", type_vocab_size=2, embedding_norm=True, head_transform=True
    ),
}


def live_storages() -> dict[int, int]:
    """Bytes of each storage that some tensor holds, by its address."""
    gc.collect()
    found = {}
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter, DTensor)]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    for tensor in tensors:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if local.device.type == "cpu" and type(local) in (torch.Tensor, torch.nn.Parameter):
            found[local.untyped_storage().data_ptr()] = local.untyped_storage().nbytes()
    return found


def config_of(model: str, layout: Layout, num_data: int, state_dtype: Any = "fp32", **parallel: object) -> TrainConfig:
    zero = layout.engine.startswith("zero")
    common = {
        "engine": "zero" if zero else "fsdp",
        "zero_stage": int(layout.engine[-1]) if zero else 1,
        "data_shard": 1 if layout.engine == "replicate" else None,
        "tensor": layout.tensor,
        "precision": layout.precision,
    }
    return TrainConfig(
        model=replace(MODELS[model]),
        data=Data(sequence_length=LENGTH, objective="clm" if MODELS[model].causal else "mlm"),
        batch=Batch(global_size=ROWS, micro_size=ROWS // num_data // layout.accumulation),
        optimizer=Optimizer(state_dtype=state_dtype),
        parallel=Parallel(**{**common, **parallel}),
    )


_engines: list[Engine] = []  # all that were measured: kept, so that no address is used twice


def measure(model: str, layout: Layout, world: Mesh, **parallel: object) -> dict[str, float]:
    """Bytes on this rank, measured and planned: of states (with the buffers that stay), and of activations.

    Args:
        parallel: settings of the section parallel, and optimizer.state_dtype.
    """
    before = live_storages()
    mesh = shape_of(world, layout)
    config = config_of(model, layout, mesh.num_data, **parallel)
    footprint = footprint_of(config, mask=4 if layout.precision == "fp32" else 2, recompute_peak=False)
    plan = memory(footprint, layout_of(config, mesh.world_size))
    engine = build_pretraining_engine(config, mesh)
    _engines.append(engine)
    engine.module.train()
    batch = _batch(config)
    states = 0
    for number in range(layout.accumulation):  # gradients of the whole model may be there only until the last one
        engine.forward_backward(batch, 100, is_last=number == layout.accumulation - 1)
        states = max(states, sum(n for a, n in live_storages().items() if a not in before))
    states -= sum(t.untyped_storage().nbytes() for t in batch.values())
    engine.step(1e-3)
    kept = _kept_after_forward(engine, batch)
    engine.step(1e-3)

    staying = 0.0
    in_between = layout.engine == "zero-1" and layout.accumulation > 1
    if layout.engine == "zero-3" or in_between:  # the buffer of reductions
        staying = 4.0 * min(BUCKET, footprint.parameters)
    elif layout.engine == "zero-1" and layout.precision == "bf16" and mesh.num_data > 1:
        staying = 4.0 * footprint.parameters / mesh.num_data  # this rank's part of the reduced gradients
    if layout.engine == "zero-3":  # small parameters, which are not partitioned
        weight = 4 if layout.precision == "fp32" else 2
        staying += weight * footprint.small * (1 - 1 / mesh.num_data)
    return {
        "states": states,
        "planned states": plan.states + staying,
        "activations": kept,
        "planned activations": footprint.activations,
    }


def _batch(config: TrainConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.model.vocab_size, (config.batch.micro_size, LENGTH), generator=generator)
    labels = ids.clone()
    if not config.model.causal:
        labels[:, :] = -100
        masked = round(LENGTH * config.data.mlm_probability)
        labels[:, :masked] = ids[:, :masked]
    return {"input_ids_BT": ids, "labels_BT": labels}


def _kept_after_forward(engine: Engine, batch: dict[str, torch.Tensor]) -> float:
    """Bytes that are alive at the end of the forward pass and were not before it."""
    found: list[float] = []
    before = live_storages()

    def look(module, arguments, result):
        found.append(sum(n for a, n in live_storages().items() if a not in before))

    handle = engine.module.register_forward_hook(look)
    try:
        # Whatever autograd keeps becomes an object that can be counted.
        with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda tensor: tensor):
            engine.forward_backward(batch, 100, is_last=True)
    finally:
        handle.remove()
    return found[0]
