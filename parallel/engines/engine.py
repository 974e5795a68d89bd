"""The interface of an engine: what the training loop calls.

An engine owns the module, the optimizer and the communication. The loop gives it micro-batches and the number of target
tokens of the whole step over all ranks. Each engine computes the gradient of (sum of losses) / (number of targets).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import nn

from ingot.parallel.checkpoint.digest import digest
from ingot.parallel.checkpoint.owners import agree_on_owners, union
from ingot.parallel.engines.compilation import Compilation
from ingot.parallel.mesh import Mesh, sum_over_ranks
from ingot.parallel.tensor_shards import TensorShard, TensorSlice, parameter_of, to_global, whole_shard

Batch = dict[str, torch.Tensor | float]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
ValuesOf = Callable[[str, tuple[int, ...], tuple[int, ...]], torch.Tensor]


@dataclass(frozen=True)
class LocalParameters:
    """What this tensor rank holds of a module's parameters, by name.

    Attributes:
        slices: the slice of the logical tensor that a parameter is. A parameter without an entry is whole, and all
            tensor ranks hold it.
        counted: parameters that this rank adds to sums over the tensor ranks, such as the gradient norm. Each element
            of the model is counted by exactly one rank.
        partial: parameters that several tensor ranks hold and of whose gradient each has only a part, with the group
            of these ranks. The engine sums the parts before a step.
    """

    slices: dict[str, TensorSlice]
    counted: frozenset[str]
    partial: Mapping[str, dist.ProcessGroup] = field(default_factory=dict)


class Engine(ABC):
    """A module in training. The module's forward, given labels, returns the sum of its losses over the targets.

    Args:
        module: on the meta device, already split over the tensor ranks.
        local_parameters: what this rank holds of its parameters.
    """

    def __init__(self, module: nn.Module, mesh: Mesh, local_parameters: LocalParameters):
        self.module = module
        self.mesh = mesh
        self.local_parameters = local_parameters
        self.compilation: Compilation | None = None
        """Of the module's blocks; None if they run eager."""
        self.frozen_digests: dict[str, str] = {}
        """Of the fp32 values that `initialize` gave to frozen parameters, by name: `model/NAME`."""

    def initialize(self, values_of: ValuesOf) -> None:
        """Sets the parameters. Each rank sets its own part.

        Args:
            values_of: a function of name, offset and shape. It returns the fp32 values of this rectangle of the logical
                tensor, the same ones on all ranks.
        """
        frozen = self._global(self.frozen_shards())
        digests: dict[str, int] = {}
        mine = set()
        if has_frozen := any(not parameter.requires_grad for parameter in self.module.parameters()):
            ownership = agree_on_owners(frozen)
            digests, mine = dict.fromkeys(ownership.names, 0), {shard.key for shard in ownership.mine}
        with torch.no_grad():
            for shard in [*self.shards(), *frozen]:
                if shard.name.startswith("model/"):
                    rectangle = shard.rectangle
                    values = values_of(parameter_of(shard.name), rectangle.offset, rectangle.shape)
                    shard.tensor.copy_(values)
                    if shard.key in mine:  # before they are rounded to the type of the computation
                        digests[shard.name] += digest(replace(shard, tensor=values.float()))
        if has_frozen:
            sums = sum_over_ranks(list(digests.values()))
            self.frozen_digests = {name: f"{value % 2**64:016x}" for name, value in zip(digests, sums, strict=True)}
        self.sync_from_shards(0)

    def shards(self) -> list[TensorShard]:
        """Views of this rank's part of the state: fp32 parameters `model/NAME` and `optimizer/STATE/NAME`.

        Frozen parameters are not included: they keep the values of `initialize`. Writing into the views changes the
        state; call `sync_from_shards` afterwards.
        """
        return self._global(self.local_shards())

    def num_parameters(self, only_trainable: bool = False) -> int:
        """The number of parameters of the whole module. Each rank must call it."""
        shards = [shard for shard in self.shards() if shard.name.startswith("model/")]
        if not only_trainable:
            shards += self._global(self.frozen_shards())
        shapes = union({shard.name: shard.global_shape for shard in shards})  # a ZeRO rank may hold nothing of some
        return sum(math.prod(shape) for shape in shapes.values())

    def _global(self, shards: list[TensorShard]) -> list[TensorShard]:
        return to_global(shards, self.local_parameters.slices)

    @abstractmethod
    def forward_backward(self, batch: Batch, num_targets: int, is_last: bool) -> torch.Tensor:
        """Forward and backward pass of one micro-batch. Gradients are accumulated.

        Args:
            batch: the module's keyword arguments, on `mesh.device`.
            num_targets: target tokens of the whole optimizer step, over all micro-batches and ranks.
            is_last: whether this is the last micro-batch of the step, after which gradients are reduced.

        Returns:
            The sum of this micro-batch's losses, detached, fp32.
        """

    @abstractmethod
    def step(self, learning_rate: float, number: int | None = None) -> torch.Tensor:
        """Clips the gradients, updates the parameters, and clears the gradients.

        Args:
            number: of the step, for groups of parameters with a later first step. None: all groups are updated.

        Returns:
            The global gradient norm before clipping, a scalar on the device. Reading it lets the host wait.
        """

    @abstractmethod
    def forward(self, batch: Batch) -> torch.Tensor:
        """The module's result on `batch`, without gradients. Each rank must call it the same number of times."""

    @abstractmethod
    def local_shards(self) -> list[TensorShard]:
        """`shards` of the parameters of this rank's module, which may be slices of the logical ones."""

    @abstractmethod
    def frozen_shards(self) -> list[TensorShard]:
        """Views of this rank's part of the frozen parameters, in the type of the computation, as `local_shards`."""

    @abstractmethod
    def sync_from_shards(self, step: int) -> None:
        """Updates what depends on the shards after they were written: bf16 copies, the replicas of other ranks, and
        Adam's number of steps.

        Args:
            step: optimizer steps done.
        """


def unsharded_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[TensorShard]:
    """The shards of an engine in which each rank has whole fp32 parameters and optimizer states. No frozen ones."""
    shards = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        shards.append(whole_shard(f"model/{name}", parameter.data))
        for state, value in optimizer.state.get(parameter, {}).items():
            if value.shape == parameter.shape and state != "step":
                shards.append(whole_shard(f"optimizer/{state}/{name}", value))
    return shards


def unsharded_frozen(module: nn.Module) -> list[TensorShard]:
    """The frozen parameters of an engine in which each rank has whole parameters."""
    return [whole_shard(f"model/{name}", p.data) for name, p in module.named_parameters() if not p.requires_grad]
