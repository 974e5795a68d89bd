"""The torch-native engine: one device, or plain data parallel through DistributedDataParallel."""

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from parallel.catalog import Shard
from parallel.engine import Batch, Bf16Compute, Engine, whole_tensor_shards
from parallel.mesh import Mesh
from parallel.optimizer import create_state, set_step


class TorchEngine(Engine):
    """fp32 parameters and AdamW states on each rank; gradients are reduced once a step, in fp32.

    Args:
        module: fp32, on `mesh.device`, with its initial weights.
        optimizer: over the module's parameters.
        precision: `bf16` or `fp32`, of the computation.
        clip_norm: global gradient norm above which gradients are scaled down; 0 for never.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.AdamW, *, mesh: Mesh, precision: str, clip_norm: float
    ):
        super().__init__(module, mesh)
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        create_state(optimizer, self.parameters)
        self.compute = Bf16Compute(module) if precision == "bf16" else module
        self.wrapped = (
            DistributedDataParallel(self.compute, gradient_as_bucket_view=True) if mesh.num_data > 1 else self.compute
        )

    def accumulate(self, batch: Batch, num_targets: int, last: bool) -> torch.Tensor:
        with self.wrapped.no_sync() if self.mesh.num_data > 1 and not last else nullcontext():
            loss_sum = self.wrapped(**batch)
            # DistributedDataParallel averages over ranks; the step's loss is a sum over all of them.
            (loss_sum * (self.mesh.num_data / num_targets)).backward()
        return loss_sum.detach()

    def step(self, learning_rate: float) -> float:
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    @torch.no_grad()
    def forward(self, batch: Batch) -> torch.Tensor:
        return self.compute(**batch)

    def shards(self) -> list[Shard]:
        return whole_tensor_shards(self.module, self.optimizer)

    def refresh(self, step: int) -> None:
        set_step(self.optimizer, step)
