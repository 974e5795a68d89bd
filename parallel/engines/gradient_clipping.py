"""The global gradient norm, and clipping by it (Pascanu et al. 2013), for parameters that are split in any way."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from ingot.parallel.engines.engine import LocalParameters
from ingot.parallel.mesh import Mesh
from ingot.parallel.torch_compat import multiply_, norms


def clip_gradients(
    module: nn.Module, local_parameters: LocalParameters, mesh: Mesh, max_grad_norm: float
) -> torch.Tensor:
    """Scales the gradients down so that their global norm is at most `max_grad_norm`. Each rank must call it.

    Args:
        max_grad_norm: 0 means no clipping.

    Returns:
        The norm before clipping, over all parts of all parameters, each part counted once.
    """
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    sharded = any(isinstance(gradient, DTensor) for gradient in gradients.values())
    gradients = {name: g.to_local() if isinstance(g, DTensor) else g for name, g in gradients.items()}
    counted = [gradient for name, gradient in gradients.items() if name in local_parameters.counted]
    parts = norms(counted) if counted else [torch.zeros(())]
    square = torch.linalg.vector_norm(torch.stack(parts)).square().to(mesh.device)
    if mesh.tensor > 1:
        dist.all_reduce(square, group=mesh.tensor_group)
    if sharded:
        dist.all_reduce(square, group=mesh.torch_mesh["data_shard"].get_group())
    norm = square.sqrt()
    if max_grad_norm and gradients:
        scale = (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        multiply_(list(gradients.values()), scale.to(next(iter(gradients.values())).device))
    return norm
