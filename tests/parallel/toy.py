"""A small model and its data, which the tests of engines and checkpoints train: a tied head, a norm, uneven shapes."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from ingot.parallel.engines.engine import Engine, LocalParameters
from ingot.parallel.engines.fsdp import TorchEngine
from ingot.parallel.engines.zero import ZeroEngine
from ingot.parallel.mesh import Mesh
from ingot.parallel.optimizer import adamw, matrices, parameter_groups

GLOBAL, MICRO, LENGTH, VOCABULARY = 8, 2, 16, 97
ENGINES = ("torch", "fsdp", "zero-0", "zero-1", "zero-2", "zero-3")


class Head(nn.Module):
    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(self, hidden, labels):
        logits = F.linear(hidden, self.weight).float().flatten(0, 1)
        return F.cross_entropy(logits, labels.flatten(), reduction="sum", ignore_index=-100)


class Toy(nn.Module):
    def __init__(self, width: int = 33):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = Head(self.embedding.weight)

    def forward(self, input_ids, labels):
        return self.head(self.norm(torch.tanh(self.linear(self.embedding(input_ids)))), labels)


def build(kind: str, mesh: Mesh, precision: str = "fp32", width: int = 33) -> Engine:
    torch.manual_seed(0)
    values = dict(Toy(width).named_parameters())
    with torch.device("meta"):
        module = Toy(width)
    local_parameters = LocalParameters({}, frozenset(values))

    decaying = matrices(module)

    def make_optimizer(module):
        return adamw(parameter_groups(module, 0.1, decaying), learning_rate=1e-2, betas=(0.9, 0.95), eps=1e-8)

    common = {"mesh": mesh, "local_parameters": local_parameters, "precision": precision, "max_grad_norm": 1.0}
    if kind in ("torch", "fsdp"):
        common["mesh"] = mesh if kind == "fsdp" else replace(mesh, data_shard=1)
        engine = TorchEngine(module, make_optimizer, **common)
    else:
        accumulation = GLOBAL // MICRO // mesh.num_data
        engine = ZeroEngine(
            module, make_optimizer, stage=int(kind[-1]), micro_batch=MICRO, num_micro_batches=accumulation, **common
        )
    engine.initialize(lambda name, offset, shape: values[name][slices(offset, shape)])
    return engine


def slices(offset: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))


def train(engine: Engine, first: int, last: int) -> list[tuple[float, float]]:
    """Steps first..last-1, whose data follow from the step. Targets are spread unevenly over ranks and micro-batches.

    Returns:
        (loss, gradient norm) of each step.
    """
    mesh, results = engine.mesh, []
    share = GLOBAL // mesh.num_data
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randint(0, VOCABULARY, (GLOBAL, LENGTH), generator=generator)
        labels = (inputs * 7 + 3) % VOCABULARY
        labels[torch.rand(labels.shape, generator=generator) < torch.linspace(0, 0.9, GLOBAL)[:, None]] = -100
        count, loss_sum = int((labels != -100).sum()), torch.zeros((), dtype=torch.float64)
        for start in range(mesh.data_rank * share, (mesh.data_rank + 1) * share, MICRO):
            rows = slice(start, start + MICRO)
            last_micro = start + MICRO == (mesh.data_rank + 1) * share
            loss_sum += engine.forward_backward({"input_ids": inputs[rows], "labels": labels[rows]}, count, last_micro)
        norm = float(engine.step(1e-2))
        torch.distributed.all_reduce(loss_sum)
        results.append((float(loss_sum) / count, norm))
    return results
