"""Memory for a model that was built on the meta device, in the one form in which a rank keeps it."""

from collections import defaultdict

import torch
from torch import nn


def materialise(module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Gives each parameter of `module` memory with whatever was in it. Shared parameters stay shared."""
    places = shared_places(module)
    if dtype is not None:
        module.to(dtype)
    module.to_empty(device=device)
    tie(places)


def shared_places(module: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """For each parameter that stands at several places: the modules and attributes, in the order of names."""
    places = defaultdict(list)
    for _, owner in module.named_modules():
        for kind, parameter in owner.named_parameters(recurse=False):
            places[parameter].append((owner, kind))
    return [several for several in places.values() if len(several) > 1]


def tie(places: list[list[tuple[nn.Module, str]]]) -> None:
    """Makes them one parameter each again: the first one's."""
    for (first, kind), *others in places:
        for owner, other in others:
            setattr(owner, other, getattr(first, kind))
