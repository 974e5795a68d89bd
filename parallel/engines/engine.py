"""The engine interface: what the training loop may ask for, whoever does the work.

An engine owns the module, the optimizer and the communication. The loop gives it micro-batches and one number, the
count of target tokens of the whole step over all ranks; each engine must produce the gradient of (sum of losses) /
(that count).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from ingot.parallel.catalog import Placement, Shard, parameter_of, place, whole
from ingot.parallel.mesh import Mesh

Batch = dict[str, torch.Tensor | float]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
ValuesOf = Callable[[str, tuple[int, ...], tuple[int, ...]], torch.Tensor]


@dataclass(frozen=True)
class Shares:
    """What this rank holds of a module's parameters, by name. Those without a placement are whole, on all ranks alike.

    Attributes:
        placements: where a parameter lies in its logical tensor.
        counted: parameters that this rank answers for in sums over the tensor ranks, such as the gradient norm: each
            element of the model is counted by one of them.
    """

    placements: dict[str, Placement]
    counted: frozenset[str]


class Engine(ABC):
    """A module under training. The module's forward, given labels, returns the sum of its losses over the targets.

    Args:
        module: on the meta device, already cut into this rank's shares.
    """

    def __init__(self, module: nn.Module, mesh: Mesh, shares: Shares):
        self.module = module
        self.mesh = mesh
        self.shares = shares

    def fill(self, values_of: ValuesOf) -> None:
        """Sets the parameters, each rank its own part of them.

        Args:
            values_of: name, offset and shape of a box of a logical tensor to its fp32 values, the same on all ranks.
        """
        with torch.no_grad():
            for shard in [*self.shards(), *place(self.frozen_shards(), self.shares.placements)]:
                if shard.name.startswith("model/"):
                    box = shard.rectangle
                    shard.tensor.copy_(values_of(parameter_of(shard.name), box.offset, box.shape))
        self.refresh(0)

    def shards(self) -> list[Shard]:
        """Live views of this rank's part of the state: fp32 parameters `model/NAME` and `optimizer/STATE/NAME`. Frozen
        parameters are no part of it: they are as they were filled.

        Writing into them changes the state; call `refresh` afterwards.
        """
        return place(self.own_shards(), self.shares.placements)

    def num_parameters(self, learning: bool = False) -> int:
        """Parameters of the whole module, or those of them that learn. Each rank must call it."""
        shards = [s for s in self.own_shards() if s.name.startswith("model/")]
        shapes = {s.name: s.global_shape for s in place(shards, self.shares.placements)}
        if not learning:
            shapes |= {s.name: s.global_shape for s in place(self.frozen_shards(), self.shares.placements)}
        everywhere: list = [None] * dist.get_world_size()  # a ZeRO rank may hold nothing of some
        dist.all_gather_object(everywhere, shapes)
        return sum(math.prod(shape) for shape in {n: s for part in everywhere for n, s in part.items()}.values())

    @abstractmethod
    def accumulate(self, batch: Batch, num_targets: int, last: bool) -> torch.Tensor:
        """Forward and backward of one micro-batch.

        Args:
            batch: the module's keyword arguments, on `mesh.device`.
            num_targets: target tokens of the whole optimizer step, over all micro-batches and ranks.
            last: whether this is the step's last micro-batch, after which gradients are reduced.

        Returns:
            The sum of this micro-batch's losses, detached, fp32.
        """

    @abstractmethod
    def step(self, learning_rate: float, number: int | None = None) -> float:
        """Clips, updates, clears the gradients. Returns the global gradient norm before clipping.

        Args:
            number: of the step, for groups of parameters that begin to learn later. None: all learn.
        """

    @abstractmethod
    def forward(self, batch: Batch) -> torch.Tensor:
        """The module's own result on `batch`, without gradients. Each rank must call it equally often."""

    @abstractmethod
    def own_shards(self) -> list[Shard]:
        """`shards` of the parameters as this rank's module has them, cut or whole."""

    @abstractmethod
    def frozen_shards(self) -> list[Shard]:
        """Views of this rank's part of the parameters that do not learn, in the type that they are computed in."""

    @abstractmethod
    def refresh(self, step: int) -> None:
        """Brings up to date what follows from the shards, after they were written: bf16 copies, other ranks' replicas,
        Adam's step count."""


def whole_tensor_shards(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Shard]:
    """The catalog of an engine that keeps whole fp32 parameters and their optimizer states on each rank; without the
    frozen ones."""
    shards = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        shards.append(whole(f"model/{name}", parameter.data))
        for state, value in optimizer.state.get(parameter, {}).items():
            if value.shape == parameter.shape and state != "step":
                shards.append(whole(f"optimizer/{state}/{name}", value))
    return shards


def whole_frozen_shards(module: nn.Module) -> list[Shard]:
    """The parameters that do not learn, of an engine that keeps them whole."""
    return [whole(f"model/{name}", p.data) for name, p in module.named_parameters() if not p.requires_grad]


class Bf16Compute(nn.Module):
    """Computes a module in bf16 while its parameters, and so their gradients and the optimizer, stay in fp32.

    The parameters are rounded once per forward. Gradients arrive in bf16 from each micro-batch and accumulate in
    fp32, as under ZeRO-1.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, **batch):
        rounded = {name: p.to(torch.bfloat16) for name, p in self.module.named_parameters()}
        return torch.func.functional_call(self.module, rounded, kwargs=batch, tie_weights=True)
