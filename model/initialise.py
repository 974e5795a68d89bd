"""First values of a model's parameters, each a pure function of the seed and the parameter's name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterator

import torch
from torch import Tensor, nn

from model.layers import LayerNorm, RMSNorm
from model.transformer import Transformer

RESIDUAL_OUTPUTS = ("attention.output.weight", "mlp.down.weight")
"""Ends of the names of the matrices that write to the residual stream."""


def initial_values(model: Transformer, seed: int, only: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Name and first value, fp32 on the CPU, of each parameter; a tied one comes once, under its first name.

    Norms are 1, biases 0, all matrices normal with `init_std`, divided by sqrt(2 * num_layers) where they write to the
    residual stream and `residual_scaled_init` is set (GPT-2). Each is drawn from its own generator, so a value depends
    on neither the order of creation nor on what else the model has. Only shapes are read: a model on the meta device
    will do. `only` names the parameters that are wanted; None is all.
    """
    config = model.config
    residual_std = (
        config.init_std / math.sqrt(2 * config.num_layers) if config.residual_scaled_init else config.init_std
    )
    norms = {name for name, module in model.named_modules() if isinstance(module, LayerNorm | RMSNorm)}
    for name, parameter in model.named_parameters():
        if only is not None and name not in only:
            continue
        owner, _, kind = name.rpartition(".")
        if kind == "bias":
            value = torch.zeros(parameter.shape)
        elif owner in norms:
            value = torch.ones(parameter.shape)
        else:
            std = residual_std if name.endswith(RESIDUAL_OUTPUTS) else config.init_std
            value = torch.empty(parameter.shape).normal_(0.0, std, generator=_generator(seed, name))
        yield name, value


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Sets all parameters of a materialised model to their `initial_values`, in their own type and on their device.

    Raises:
        ValueError: the model is still on the meta device.
    """
    parameters = dict(model.named_parameters())
    on_meta = [name for name, parameter in parameters.items() if parameter.is_meta]
    if on_meta:
        raise ValueError(
            f"{len(on_meta)} parameters ({on_meta[0]}, ...) have no memory; call model.to_empty(device=...) first"
        )
    for name, value in initial_values(model, seed):
        parameters[name].copy_(value)


def _generator(seed: int, name: str) -> torch.Generator:
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(key, "little"))
