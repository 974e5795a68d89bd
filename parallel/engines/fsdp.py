"""The torch-native engine: one device, replicas (DistributedDataParallel), shards (FSDP2), or both (HSDP)."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.parallel import DistributedDataParallel

from ingot.parallel.catalog import Rectangle, Shard, whole
from ingot.parallel.engines.engine import Batch, Bf16Compute, Engine, MakeOptimizer, Shares
from ingot.parallel.engines.gradient_clipping import clip_gradients
from ingot.parallel.engines.materialization import materialise
from ingot.parallel.mesh import Mesh
from ingot.parallel.optimizer import create_state, set_learning_rate, set_step


class TorchEngine(Engine):
    """fp32 parameters and optimizer states, whole or in shards; gradients are added up and reduced in fp32.

    Replicas reduce once a step. Shards reduce after each micro-batch, so that no rank ever holds whole gradients, and
    replicas of shards once a step.

    Args:
        module: on the meta device, cut into this rank's `shares`.
        make_optimizer: makes the optimizer of the module, once its parameters have memory.
        precision: `bf16` or `fp32`, of the computation.
        max_grad_norm: global gradient norm above which gradients are scaled down; 0 for never.
        blocks: submodules whose parameters are gathered together, just before they are used.
        offload: whether parameters, gradients and optimizer rest in the host's memory, in shards.
    """

    def __init__(
        self,
        module: nn.Module,
        make_optimizer: MakeOptimizer,
        *,
        mesh: Mesh,
        shares: Shares,
        precision: str,
        max_grad_norm: float,
        blocks: Sequence[nn.Module] = (),
        offload: bool = False,
    ):
        super().__init__(module, mesh, shares)
        self.max_grad_norm = max_grad_norm
        self.sharded = mesh.shard > 1 or offload
        if self.sharded:
            cut(module, blocks, mesh, precision, offload)
        materialise(module, torch.device("cpu") if offload else mesh.device)
        self.optimizer = make_optimizer(module)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        create_state(self.optimizer, list(self.parameters.values()))
        self.compute = self.wrapped = module
        if precision == "bf16" and not self.sharded:
            self.compute = self.wrapped = Bf16Compute(module)
        if mesh.num_data > 1 and not self.sharded:
            self.wrapped = DistributedDataParallel(
                self.compute, process_group=mesh.data_group, gradient_as_bucket_view=True
            )

    def accumulate(self, batch: Batch, num_targets: int, last: bool) -> torch.Tensor:
        if self.sharded:
            self.module.set_requires_all_reduce(last)
        waits = self.mesh.num_data > 1 and not self.sharded and not last
        with self.wrapped.no_sync() if waits else nullcontext():
            loss_sum = self.wrapped(**batch)
            # Both reductions average over ranks; the step's loss is a sum over all of them.
            (loss_sum * (self.mesh.num_data / num_targets)).backward()
        return loss_sum.detach()

    def step(self, learning_rate: float, number: int | None = None) -> float:
        norm = clip_gradients(self.module, self.shares, self.mesh, self.max_grad_norm)
        set_learning_rate(self.optimizer, learning_rate, number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    @torch.no_grad()
    def forward(self, batch: Batch) -> torch.Tensor:
        return self.compute(**batch)

    def own_shards(self) -> list[Shard]:
        shards = []
        for name, parameter in self.parameters.items():
            shards += _shards(f"model/{name}", parameter.detach())
            for state, value in self.optimizer.state.get(parameter, {}).items():
                if value.shape == parameter.shape and state != "step":
                    shards += _shards(f"optimizer/{state}/{name}", value)
        return shards

    def frozen_shards(self) -> list[Shard]:
        frozen = [(name, p.detach()) for name, p in self.module.named_parameters() if not p.requires_grad]
        return [shard for name, parameter in frozen for shard in _shards(f"model/{name}", parameter)]

    def refresh(self, step: int) -> None:
        set_step(self.optimizer, step)


def cut(module: nn.Module, blocks: Sequence[nn.Module], mesh: Mesh, precision: str, offload: bool = False) -> None:
    """Leaves this rank its part of each parameter, over the data ranks that share them. Arguments as in the engine."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    policy = MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    replicated = mesh.num_data > mesh.shard
    devices = mesh.devices["data_replicate", "data_shard"] if replicated else mesh.devices["data_shard"]
    place = {"offload_policy": CPUOffloadPolicy(pin_memory=mesh.device.type == "cuda")} if offload else {}
    for part in (*blocks, module):
        fully_shard(part, mesh=devices, mp_policy=policy, **place)


def _shards(name: str, tensor: torch.Tensor) -> list[Shard]:
    if not isinstance(tensor, DTensor):
        return [whole(name, tensor)]
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if 0 in shape:  # fewer rows than ranks
        return []
    return [Shard(name, tuple(tensor.shape), Rectangle(tuple(offset), tuple(shape)), tensor.to_local())]
