"""First values of the parameters of a model. Each is a pure function of the seed, the parameter's name and the
index."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterator

import torch
from torch import Tensor

from ingot.model.layers import LayerNorm, RMSNorm
from ingot.model.transformer import Transformer

RESIDUAL_OUTPUTS = ("attention.output.weight", "mlp.down.weight")
"""Suffixes of the names of the matrices that write to the residual stream."""
BLOCK_NUMEL = 1 << 20
"""Elements that are drawn at once, so that a part of a large matrix does not cost much more than its own size."""


class InitialValues:
    """The first values of the parameters of a model, whole or in parts.

    Norms are 1 and biases 0. All matrices are normal with `initializer_range`, divided by sqrt(2 * num_hidden_layers)
    if they write to the residual stream and `residual_scaled_init` is set (GPT-2). Each block of rows has its own
    random generator, so a value does not depend on the order of creation, on other parameters, or on which part is
    read.

    Args:
        model: only names and shapes are read, so it may be on the meta device. A tied parameter has its first name.
    """

    def __init__(self, model: Transformer, seed: int):
        config = model.config
        norms = {name for name, module in model.named_modules() if isinstance(module, LayerNorm | RMSNorm)}
        scale = 1 / math.sqrt(2 * config.num_hidden_layers) if config.residual_scaled_init else 1.0
        self.seed = seed
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._constants = {name: 0.0 for name in self.shapes if name.endswith("bias")}
        self._constants |= {f"{name}.weight": 1.0 for name in norms}
        self._std = {
            name: config.initializer_range * (scale if name.endswith(RESIDUAL_OUTPUTS) else 1.0) for name in self.shapes
        }

    def part(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """The rectangle of `shape` at `offset` of the first value of a parameter, fp32 on the CPU."""
        if name in self._constants:
            return torch.full(shape, self._constants[name])
        whole = self.shapes[name]
        rows_of_block = max(1, BLOCK_NUMEL // math.prod(whole[1:]))
        columns = tuple(slice(o, o + n) for o, n in zip(offset[1:], shape[1:], strict=True))
        result, stop = torch.empty(shape), offset[0] + shape[0]
        for block in range(offset[0] // rows_of_block, -(-stop // rows_of_block)):
            first = block * rows_of_block
            rows = min(rows_of_block, whole[0] - first)
            values = torch.empty(rows, *whole[1:])
            values.normal_(0.0, self._std[name], generator=self._generator(name, block))
            top, bottom = max(first, offset[0]), min(first + rows, stop)
            result[top - offset[0] : bottom - offset[0]] = values[(slice(top - first, bottom - first), *columns)]
        return result

    def whole(self, name: str) -> Tensor:
        shape = self.shapes[name]
        return self.part(name, (0,) * len(shape), shape)

    def _generator(self, name: str, block: int) -> torch.Generator:
        return named_generator(self.seed, name + (f"/{block}" if block else ""))


def named_generator(seed: int, name: str) -> torch.Generator:
    """A random generator for this seed and name."""
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(key, "little"))


def initial_values(model: Transformer, seed: int, only: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Name and first value, fp32 on the CPU, of each parameter that `only` names, or of all."""
    values = InitialValues(model, seed)
    for name in values.shapes:
        if only is None or name in only:
            yield name, values.whole(name)


@torch.no_grad()
def initialize(model: Transformer, seed: int) -> None:
    """Sets all parameters of a model to their `InitialValues`, in their dtype and on their device.

    Raises:
        ValueError: parameters are still on the meta device.
    """
    parameters = dict(model.named_parameters())
    on_meta = [name for name, parameter in parameters.items() if parameter.is_meta]
    if on_meta:
        raise ValueError(
            f"{len(on_meta)} parameters ({on_meta[0]}, ...) are on the meta device; "
            "call model.to_empty(device=...) first"
        )
    for name, value in initial_values(model, seed):
        parameters[name].copy_(value)
