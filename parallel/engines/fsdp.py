"""The torch-native engine: one device, replicas (DistributedDataParallel), shards (FSDP2), or both (HSDP)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ingot.parallel.engines.engine import Batch, Bf16Compute, Engine, LocalParameters, MakeOptimizer
from ingot.parallel.engines.gradient_clipping import clip_gradients
from ingot.parallel.engines.materialization import materialize
from ingot.parallel.mesh import Mesh
from ingot.parallel.optimizer import create_state, set_learning_rate, set_step
from ingot.parallel.tensor_shards import Rectangle, TensorShard, whole_shard
from ingot.parallel.torch_compat import local_shape_and_offset


class TorchEngine(Engine):
    """fp32 parameters and optimizer states, whole or sharded. Gradients are accumulated and reduced in fp32.

    Replicas reduce their gradients once per step. Shards reduce after each micro-batch, so that no rank holds whole
    gradients, and replicas of shards once per step.

    Args:
        module: on the meta device, already split over the tensor ranks.
        make_optimizer: makes the optimizer of the module, after its parameters have got memory.
        precision: of the computation, `bf16` or `fp32`.
        max_grad_norm: global gradient norm above which gradients are scaled down; 0 means no clipping.
        blocks: submodules whose parameters are gathered together, just before they are used.
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
        blocks: Sequence[nn.Module] = (),
        offload: bool = False,
    ):
        super().__init__(module, mesh, local_parameters)
        self.max_grad_norm = max_grad_norm
        self.sharded = mesh.data_shard > 1 or offload
        if self.sharded:
            apply_fsdp(module, blocks, mesh, precision, offload)
        materialize(module, torch.device("cpu") if offload else mesh.device)
        self.optimizer = make_optimizer(module)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        create_state(self.optimizer, list(self.parameters.values()))
        self.compute = Bf16Compute(module) if precision == "bf16" and not self.sharded else module
        self.wrapped = self.compute
        if mesh.num_data > 1 and not self.sharded:
            self.wrapped = DistributedDataParallel(
                self.compute, process_group=mesh.data_group, gradient_as_bucket_view=True
            )

    def forward_backward(self, batch: Batch, num_targets: int, is_last: bool) -> torch.Tensor:
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_all_reduce(is_last)
        context: AbstractContextManager = nullcontext()
        if isinstance(self.wrapped, DistributedDataParallel) and not is_last:
            context = self.wrapped.no_sync()
        with context:
            loss_sum = self.wrapped(**batch)
            # DDP and FSDP2 average gradients over ranks; the loss of the step is a sum over ranks.
            (loss_sum * (self.mesh.num_data / num_targets)).backward()
        return loss_sum.detach()

    def step(self, learning_rate: float, number: int | None = None) -> torch.Tensor:
        norm = clip_gradients(self.module, self.local_parameters, self.mesh, self.max_grad_norm)
        set_learning_rate(self.optimizer, learning_rate, number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def forward(self, batch: Batch) -> torch.Tensor:
        return self.compute(**batch)

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


def apply_fsdp(
    module: nn.Module, blocks: Sequence[nn.Module], mesh: Mesh, precision: str, offload: bool = False
) -> None:
    """Shards each parameter over the data ranks of the axis data_shard. Arguments as in the engine."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    policy = MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    replicated = mesh.num_data > mesh.data_shard
    device_mesh = mesh.torch_mesh["data_replicate", "data_shard"] if replicated else mesh.torch_mesh["data_shard"]
    offload_policy = CPUOffloadPolicy(pin_memory=mesh.device.type == "cuda") if offload else OffloadPolicy()
    for part in (*blocks, module):
        fully_shard(part, mesh=device_mesh, mp_policy=policy, offload_policy=offload_policy)


def _shards(name: str, tensor: torch.Tensor) -> list[TensorShard]:
    if not isinstance(tensor, DTensor):
        return [whole_shard(name, tensor)]
    shape, offset = local_shape_and_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if 0 in shape:  # fewer rows than ranks
        return []
    return [TensorShard(name, tuple(tensor.shape), Rectangle(offset, shape), tensor.to_local())]
