"""The torch-native engine: one device, replicas (DistributedDataParallel), shards (FSDP2), or both (HSDP).

FSDP2 gathers and reduces the parameters of a group of modules together. `Groups` are those that the caller names; what
is in none of them is one more group, of the root, which is gathered first and reduced last.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ingot.parallel.engines.bf16 import Bf16Compute, Bf16Copies
from ingot.parallel.engines.engine import Batch, Engine, LocalParameters, MakeOptimizer
from ingot.parallel.engines.gradient_clipping import clip_gradients
from ingot.parallel.engines.materialization import materialize
from ingot.parallel.engines.partial_gradients import sum_partial_gradients
from ingot.parallel.mesh import Mesh
from ingot.parallel.optimizer import create_state, set_learning_rate, set_step
from ingot.parallel.tensor_shards import Rectangle, TensorShard, whole_shard
from ingot.parallel.torch_compat import local_shape_and_offset


@dataclass(frozen=True)
class Groups:
    """Modules whose parameters are gathered together, just before they are used.

    Attributes:
        blocks: each is a group, in the order of the forward pass.
        first, last: modules before and behind the blocks. Each is one group, and all its modules run in each forward
            pass. Empty: they belong to the root.
    """

    blocks: Sequence[nn.Module] = ()
    first: Sequence[nn.Module] = ()
    last: Sequence[nn.Module] = ()

    def lists(self) -> list[list[nn.Module]]:
        """The groups in the order of the forward pass.

        A parameter that both `first` and `last` have (the table of the embedding, where the head uses it too) must be
        whole from the one to the other, and its gradient is complete only after both: they are left to the root.
        """
        blocks = [[block] for block in self.blocks]
        ends = [{parameter for part in end for parameter in part.parameters()} for end in (self.first, self.last)]
        if ends[0] & ends[1]:
            return blocks
        return [group for group in ([*self.first], *blocks, [*self.last]) if group]


@dataclass(frozen=True)
class Sharding:
    """How FSDP2 gathers and reduces.

    Attributes:
        reshard_after_forward: free gathered parameters after the forward pass and gather them again in the backward
            pass. The last block and what is behind it are kept in any case, since the backward pass begins with them.
        reduce_dtype: in which gradients are reduced, `fp32` or `bf16`. Replicas too.
        sync_each_micro_batch: reduce after each micro-batch. Otherwise once per step: each rank then holds the whole
            gradients of its model, in `reduce_dtype`.
        symmetric_memory: gather from memory that all devices of a machine can read (NCCL, torch 2.13).
    """

    reshard_after_forward: bool = True
    reduce_dtype: str = "fp32"
    sync_each_micro_batch: bool = True
    symmetric_memory: bool = False


class TorchEngine(Engine):
    """fp32 parameters and optimizer states, whole or sharded. Gradients are accumulated in fp32.

    Replicas reduce their gradients once per step. Shards reduce after each micro-batch, so that no rank holds whole
    gradients (`Sharding` can change that), and replicas of shards once per step.

    Args:
        module: on the meta device, already split over the tensor ranks.
        make_optimizer: makes the optimizer of the module, after its parameters have got memory.
        precision: of the computation, `bf16` or `fp32`.
        max_grad_norm: global gradient norm above which gradients are scaled down; 0 means no clipping.
        groups, sharding: what is gathered and reduced together, and how.
        offload: whether parameters, gradients and optimizer are kept in the host's memory (always sharded then).
    """

    def __init__(
        self,
        module: nn.Module,
        make_optimizer: MakeOptimizer,
        *,
        mesh: Mesh,
        local_parameters: LocalParameters,
        precision: str,
        max_grad_norm: float,
        groups: Groups = Groups(),  # it is frozen
        sharding: Sharding = Sharding(),
        offload: bool = False,
    ):
        super().__init__(module, mesh, local_parameters)
        self.max_grad_norm = max_grad_norm
        self.sharded = mesh.data_shard > 1 or offload
        self.sharding = sharding
        if self.sharded:
            apply_fsdp(module, groups, mesh, precision, self.sharding, offload)
        materialize(module, torch.device("cpu") if offload else mesh.device)
        self.optimizer = make_optimizer(module)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        create_state(self.optimizer, list(self.parameters.values()))
        self.compute: nn.Module = module
        if precision == "bf16" and not self.sharded:
            self.compute = Bf16Copies(module) if mesh.num_data == 1 else Bf16Compute(module)
        self.wrapped = self.compute
        if mesh.num_data > 1 and not self.sharded:
            self.wrapped = DistributedDataParallel(
                self.compute, process_group=mesh.data_group, gradient_as_bucket_view=True
            )
            if self.sharding.reduce_dtype == "bf16":
                self.wrapped.register_comm_hook(mesh.data_group, _mean_in_bf16)

    def forward_backward(self, batch: Batch, num_targets: int, is_last: bool) -> torch.Tensor:
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(is_last or self.sharding.sync_each_micro_batch)
            self.module.set_requires_all_reduce(is_last)  # among replicas; the line before sets it too
        context: AbstractContextManager = nullcontext()
        if isinstance(self.wrapped, DistributedDataParallel) and not is_last:
            context = self.wrapped.no_sync()
        with context:
            loss_sum = self.wrapped(**batch)
            # DDP and FSDP2 average gradients over ranks; the loss of the step is a sum over ranks.
            (loss_sum * (self.mesh.num_data / num_targets)).backward()
        return loss_sum.detach()

    def step(self, learning_rate: float, number: int | None = None) -> torch.Tensor:
        sum_partial_gradients(self.module, self.local_parameters.partial)
        norm = clip_gradients(self.module, self.local_parameters, self.mesh, self.max_grad_norm)
        set_learning_rate(self.optimizer, learning_rate, number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._forget_copies()
        return norm

    @torch.no_grad()
    def forward(self, batch: Batch) -> torch.Tensor:
        result = self.compute(**batch)
        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()  # what is kept for a backward pass, which does not come
        return result

    def local_shards(self) -> list[TensorShard]:
        shards = []
        for name, parameter in self.parameters.items():
            shards += _shards(f"model/{name}", parameter.detach())
            for state, value in self.optimizer.state.get(parameter, {}).items():
                if value.shape == parameter.shape and state != "step":
                    shards += _shards(f"optimizer/{state}/{name}", value)
        return shards

    def frozen_shards(self) -> list[TensorShard]:
        frozen = [(name, p.detach()) for name, p in self.module.named_parameters() if not p.requires_grad]
        return [shard for name, parameter in frozen for shard in _shards(f"model/{name}", parameter)]

    def sync_from_shards(self, step: int) -> None:
        set_step(self.optimizer, step)
        self._forget_copies()

    def _forget_copies(self) -> None:
        if isinstance(self.compute, Bf16Copies):
            self.compute.forget()


def apply_fsdp(
    module: nn.Module,
    groups: Groups,
    mesh: Mesh,
    precision: str,
    sharding: Sharding,
    offload: bool = False,
) -> None:
    """Shards each parameter over the data ranks of the axis data_shard. Arguments as in the engine.

    Raises:
        ValueError: this torch or this device has no symmetric memory.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    reduce_dtype = torch.bfloat16 if sharding.reduce_dtype == "bf16" else torch.float32
    policy = MixedPrecisionPolicy(dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    replicated = mesh.num_data > mesh.data_shard
    device_mesh = mesh.torch_mesh["data_replicate", "data_shard"] if replicated else mesh.torch_mesh["data_shard"]
    offload_policy = CPUOffloadPolicy(pin_memory=mesh.device.type == "cuda") if offload else OffloadPolicy()

    lists = groups.lists()
    for group in lists:
        kept = group[0] in groups.blocks[-1:] or group[0] in groups.last
        fully_shard(
            group if len(group) > 1 else group[0],
            mesh=device_mesh,
            mp_policy=policy,
            offload_policy=offload_policy,
            reshard_after_forward=sharding.reshard_after_forward and not kept,
        )
    fully_shard(module, mesh=device_mesh, mp_policy=policy, offload_policy=offload_policy)
    _prefetch([_state_of(group) for group in lists])
    for group in lists:
        if all(isinstance(part, nn.Embedding) for part in group):
            _state_of(group).set_unshard_in_backward(False)  # the gradient of a table does not need the table
    if sharding.symmetric_memory:
        _use_symmetric_memory(module, mesh)


def _state_of(group: Sequence[nn.Module]) -> FSDPModule:
    """The module of a group that stands for all of them: they have one state."""
    first = group[0]
    assert isinstance(first, FSDPModule)
    return first


def _prefetch(groups: Sequence[FSDPModule]) -> None:
    """Lets each group start to gather the next one before it computes, in both passes.

    By itself FSDP2 starts that in the forward pass only when the next module is called, so that a process which is
    slower than its device leaves a gap there.
    """
    for one, following in pairwise(groups):
        one.set_modules_to_forward_prefetch([following])
        following.set_modules_to_backward_prefetch([one])


def _use_symmetric_memory(module: nn.Module, mesh: Mesh) -> None:
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    if mesh.device.type != "cuda" or not all(hasattr(part, "set_symm_mem_for_comm") for part in parts):
        raise ValueError(
            f"parallel.symmetric_memory needs CUDA and torch 2.13 or newer, and this is torch {torch.__version__} on "
            f"{mesh.device.type}; set it to false"
        )
    for part in parts:
        part.set_symm_mem_for_comm()


def _mean_in_bf16(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """How DistributedDataParallel reduces a bucket. (torch has such a hook for CUDA only.)"""
    gradients = bucket.buffer()
    rounded = (gradients / group.size()).to(torch.bfloat16)
    work = dist.all_reduce(rounded, group=group, async_op=True)
    return work.get_future().then(lambda done: gradients.copy_(done.value()[0]))


def _shards(name: str, tensor: torch.Tensor) -> list[TensorShard]:
    if not isinstance(tensor, DTensor):
        return [whole_shard(name, tensor)]
    shape, offset = local_shape_and_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if 0 in shape:  # fewer rows than ranks
        return []
    return [TensorShard(name, tuple(tensor.shape), Rectangle(offset, shape), tensor.to_local())]
