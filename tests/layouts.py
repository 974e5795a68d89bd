"""Small models of three families, and their training in one process and in any layout, for tests and benchmarks.

Sequences have very different numbers of targets, and documents end within them, so that a loss which is averaged in the
wrong order, or a rank that sees another's documents, shows.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from ingot.launcher.config.optimizer import Optimizer
from ingot.launcher.config.parallel import Parallel
from ingot.launcher.config.pretrain import Batch, Data, Run, TrainConfig
from ingot.launcher.training.build import build_pretraining_engine
from ingot.model.config import ModelConfig
from ingot.model.initialization import initialize
from ingot.model.transformer import LanguageModel
from ingot.parallel import mesh as meshes
from ingot.parallel.engines.engine import Engine
from ingot.parallel.mesh import Mesh

GLOBAL, LENGTH, VOCABULARY, STEPS = 8, 16, 101, 10
LEARNING_RATE = 1e-3

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "max_position_embeddings": LENGTH,
}
MODELS = {
    "gpt2": ModelConfig(**_COMMON),
    "llama": ModelConfig(
        **_COMMON,
        num_key_value_heads=2,
        intermediate_size=64,
        positions="rotary",
        norm="rmsnorm",
        activation="silu",
        gated_mlp=True,
        bias=False,
        qk_norm=True,
        tie_word_embeddings=False,
        final_logit_softcapping=30.0,
    ),
    "bert": ModelConfig(
        **_COMMON,
        causal=False,
        norm_placement="post",
        activation="gelu",
        type_vocab_size=2,
        embedding_norm=True,
        head_transform=True,
        head_bias=True,
        pair_head=True,
    ),
}


@dataclass(frozen=True)
class Layout:
    """An engine with its sizes: `zero-0` to `zero-3`, `replicate`, `fsdp2`, or `hsdp`."""

    engine: str
    tensor: int = 1
    accumulation: int = 1
    precision: str = "fp32"

    def __str__(self) -> str:
        return f"{self.engine} x tensor {self.tensor} x accumulation {self.accumulation}, {self.precision}"


def config_of(model: str, layout: Layout, num_data: int, **parallel: object) -> TrainConfig:
    zero = layout.engine.startswith("zero")
    common = {
        "engine": "zero" if zero else "fsdp",
        "zero_stage": int(layout.engine[-1]) if zero else 1,
        "tensor": layout.tensor,
        "precision": layout.precision,
    }
    return TrainConfig(
        run=Run(seed=0),
        model=replace(MODELS[model]),
        data=Data(sequence_length=LENGTH, objective="clm" if MODELS[model].causal else "mlm"),
        batch=Batch(global_size=GLOBAL, micro_size=GLOBAL // num_data // layout.accumulation),
        optimizer=Optimizer(learning_rate=LEARNING_RATE),
        parallel=Parallel(**{**common, **parallel}),
    )


def shape_of(world: Mesh, layout: Layout) -> Mesh:
    num_data = world.world_size // layout.tensor
    return meshes.reshape(world, layout.tensor, {"replicate": 1, "hsdp": max(1, num_data // 2)}.get(layout.engine))


def batch_of(model: str, step: int) -> tuple[dict[str, torch.Tensor], int, int]:
    """The model's arguments for a whole step, its number of targets, and its number of pairs."""
    config, generator = MODELS[model], torch.Generator().manual_seed(step)
    ids = torch.randint(0, VOCABULARY, (GLOBAL, LENGTH), generator=generator)
    labels = (ids * 7 + 3) % VOCABULARY
    labels[torch.rand(labels.shape, generator=generator) < torch.linspace(0.1, 0.95, GLOBAL)[:, None]] = -100
    batch = {"input_ids_BT": ids, "labels_BT": labels}
    if config.type_vocab_size:
        batch["token_types_BT"] = (torch.arange(LENGTH) >= LENGTH // 2).long().expand(GLOBAL, LENGTH).contiguous()
    if config.pair_head:
        batch["pair_labels_B"] = ids[:, 0] % 2
    return batch, int((labels != -100).sum()), GLOBAL


def rows_of(batch: dict[str, torch.Tensor], model: str, start: int, stop: int) -> dict[str, torch.Tensor]:
    """Some of the sequences; in a causal model each of them is two documents."""
    part = {name: tensor[start:stop] for name, tensor in batch.items()}
    if MODELS[model].causal:
        ends = [row * LENGTH + end for row in range(stop - start) for end in (5, LENGTH)]
        part["cu_seqlens"] = torch.tensor([0, *ends], dtype=torch.int32)
    return part


def train_plainly(model: str, steps: int = STEPS) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step in a plain loop: whole batches, fp32, AdamW, clipping."""
    module = LanguageModel(replace(MODELS[model]))
    initialize(module, 0)
    decay = [p for p in module.parameters() if p.ndim == 2]
    rest = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8)
    results = []
    for step in range(steps):
        batch, num_targets, num_pairs = batch_of(model, step)
        inputs = rows_of(batch, model, 0, GLOBAL)
        if "pair_labels_B" in inputs:
            inputs["pair_weight"] = torch.tensor(num_targets / num_pairs)
        loss = module(**inputs) / num_targets
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        results.append((loss.item(), norm.item()))
    return results


def engine_in(model: str, layout: Layout, world: Mesh, **parallel: object) -> Engine:
    """The model in a layout of the processes of `world`, with the weights that it has everywhere."""
    mesh = shape_of(world, layout)
    return build_pretraining_engine(config_of(model, layout, mesh.num_data, **parallel), mesh)


def train_on(engine: Engine, model: str, layout: Layout, first: int, last: int) -> list[tuple[float, float]]:
    """Loss and gradient norm of the steps first..last-1. Each rank calls it."""
    mesh, results = engine.mesh, []
    engine.module.train()
    share = GLOBAL // mesh.num_data
    micro, stop = share // layout.accumulation, (mesh.data_rank + 1) * share
    for step in range(first, last):
        batch, num_targets, num_pairs = batch_of(model, step)
        loss_sum = torch.zeros((), dtype=torch.float64)
        for start in range(mesh.data_rank * share, stop, micro):
            inputs = rows_of(batch, model, start, start + micro)
            if "pair_labels_B" in inputs:
                inputs["pair_weight"] = torch.tensor(num_targets / num_pairs)
            loss_sum += engine.forward_backward(inputs, num_targets, is_last=start + micro == stop)
        norm = float(engine.step(LEARNING_RATE))
        dist.all_reduce(loss_sum, group=mesh.data_group)
        results.append((float(loss_sum) / num_targets, norm))
    return results


def train(model: str, layout: Layout, world: Mesh, steps: int = STEPS, **parallel: object) -> list[tuple[float, float]]:
    """The same as `train_plainly` in a layout of the processes of `world`. Each of them calls it."""
    return train_on(engine_in(model, layout, world, **parallel), model, layout, 0, steps)


def difference(found: list[tuple[float, float]], expected: list[tuple[float, float]]) -> float:
    """The largest relative difference of a loss or norm of any step."""
    pairs = [(a, b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)]
    return max(abs(a - b) / abs(b) for a, b in pairs)
