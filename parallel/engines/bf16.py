"""Computation in bf16 of a module with fp32 parameters, for engines that do not keep bf16 parameters themselves."""

from functools import partial

import torch
from torch import nn

from ingot.parallel.torch_compat import copy_all


class Bf16Compute(nn.Module):
    """Computes a module in bf16 while its parameters, and so their gradients and the optimizer, stay in fp32.

    The parameters are rounded once per forward pass. Each micro-batch gives bf16 gradients, which are accumulated in
    fp32, as in ZeRO-1.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, **batch):
        rounded = {name: p.to(torch.bfloat16) for name, p in self.module.named_parameters()}
        return torch.func.functional_call(self.module, rounded, kwargs=batch, tie_weights=True)


class Bf16Copies(nn.Module):
    """`Bf16Compute` to the last bit, with copies of the parameters that are rounded once for all micro-batches of a
    step. For one process: gradients reach the parameters without a function that autograd, or a wrapper, could see.

    Each bf16 gradient is added to the fp32 one as soon as it is there, by one kernel, and is freed.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self._copies: dict[str, torch.Tensor] = {}
        self._current = False

    def forget(self) -> None:
        """The parameters may change now: the next forward rounds them again."""
        self._current = False

    def forward(self, **batch):
        if not self._current:
            self._round()
        self._current = torch.is_grad_enabled()  # after an evaluation others may write into the parameters
        return torch.func.functional_call(self.module, self._copies, kwargs=batch, tie_weights=True)

    @torch.no_grad()
    def _round(self) -> None:
        parameters = dict(self.module.named_parameters())
        if not self._copies:
            self._copies = {name: torch.empty_like(p, dtype=torch.bfloat16) for name, p in parameters.items()}
            for name, parameter in parameters.items():
                if parameter.requires_grad:
                    copy = self._copies[name].requires_grad_()
                    copy.register_post_accumulate_grad_hook(partial(_add_gradient, parameter))
        copy_all(list(self._copies.values()), list(parameters.values()))


def _add_gradient(parameter: nn.Parameter, copy: torch.Tensor) -> None:
    assert copy.grad is not None
    if parameter.grad is None:
        parameter.grad = copy.grad.to(parameter.dtype)
    else:
        parameter.grad.add_(copy.grad)
    copy.grad = None
