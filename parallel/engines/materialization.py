"""Memory for the parameters of a model that was built on the meta device, in the form in which a rank keeps them."""

from collections import defaultdict

import torch
from torch import nn


def materialize(module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Gives each parameter of `module` memory, not initialized. Shared parameters stay shared.

    Args:
        dtype: None keeps the parameters' own types.
    """
    shared = shared_parameters(module)
    if dtype is not None:
        module.to(dtype)
    module.to_empty(device=device)
    tie_weights(shared)


def shared_parameters(module: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """For each parameter that several modules have: these modules with the attribute's name, in the order of names."""
    owners = defaultdict(list)
    for _, owner in module.named_modules():
        for kind, parameter in owner.named_parameters(recurse=False):
            owners[parameter].append((owner, kind))
    return [several for several in owners.values() if len(several) > 1]


def tie_weights(shared: list[list[tuple[nn.Module, str]]]) -> None:
    """Makes the parameters of `shared_parameters` one again: each group gets the parameter of its first module."""
    for (first, kind), *others in shared:
        for owner, other in others:
            setattr(owner, other, getattr(first, kind))
