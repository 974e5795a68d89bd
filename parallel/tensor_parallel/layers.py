"""Tensor parallelism with sequence parallelism: a plan says which modules of a model are split over the tensor ranks.

A plan lists patterns of module names. Each has a role, and the number of units of its outputs or inputs. A unit, such
as an attention head, is never split.

| role            | what happens to the module                                                                      |
|-----------------|-------------------------------------------------------------------------------------------------|
| vocabulary      | embedding: a rank holds some of the rows, and the results are summed                            |
| vocabulary_head | head: a rank holds some of the rows, and its loss is summed over the ranks                      |
| column          | linear layer: a rank holds some of the outputs, in whole units; if there are fewer units than   |
|                 | ranks, several ranks hold the same unit                                                         |
| row             | linear layer: a rank holds some of the inputs; the results are summed and split along the       |
|                 | sequence                                                                                        |
| norm            | works on a part of the sequence or on some heads: its gradients are summed                      |
| gather          | its first input is gathered to whole sequences                                                  |
| split           | its first input is split along the sequence                                                     |
| join            | its output is gathered to whole sequences; after it, all ranks compute the same                 |
| same_dropout    | drops the same elements on all ranks                                                            |

Sources: Megatron-LM (arXiv 1909.08053) and its sequence parallelism (arXiv 2205.05198).
"""

import re
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ingot.parallel.engines.engine import LocalParameters
from ingot.parallel.mesh import Mesh
from ingot.parallel.tensor_parallel.collectives import (
    all_gather,
    all_reduce,
    copy_to_ranks,
    gather_replicated_sequence,
    gather_sequence,
    reduce_from_ranks,
    reduce_scatter_sequence,
    split_sequence,
)
from ingot.parallel.tensor_shards import TensorSlice

Plan = list[tuple[str, tuple[str, int]]]
M = TypeVar("M", bound=nn.Module)


class ColumnLinear(nn.Linear):
    """Holds some of the outputs. `replicas` are the ranks that hold the same ones; None: no other rank does."""

    replicas: dist.ProcessGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.replicas is None:
            return self.product(x, self.weight, self.bias)
        bias = None if self.bias is None else copy_to_ranks(self.bias, self.replicas)
        return self.product(x, copy_to_ranks(self.weight, self.replicas), bias)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x, weight, bias)


class RowLinear(nn.Linear):
    """Holds some of the inputs, and the whole bias."""

    group: dist.ProcessGroup

    def forward(self, x_BTD: Tensor) -> Tensor:
        out_BTD = reduce_scatter_sequence(self.product(x_BTD, self.weight), self.group)
        return out_BTD if self.bias is None else out_BTD + copy_to_ranks(self.bias, self.group)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x, weight, bias)


class VocabularyEmbedding(nn.Embedding):
    """Holds the rows [first, first + size) of the table. Further rows are padding."""

    group: dist.ProcessGroup
    first: int
    size: int

    def forward(self, ids: Tensor) -> Tensor:
        local = ids - self.first
        is_here = (local >= 0) & (local < self.size)
        rows = nn.functional.embedding(local.where(is_here, 0), self.weight)
        return reduce_from_ranks(rows * is_here[..., None], self.group)


class SequenceLayerNorm(nn.LayerNorm):
    """A LayerNorm that works on a part of its input."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else copy_to_ranks(self.bias, self.group)
        return nn.functional.layer_norm(
            x, self.normalized_shape, copy_to_ranks(self.weight, self.group), bias, self.eps
        )


class SequenceRMSNorm(nn.RMSNorm):
    """An RMSNorm that works on a part of its input."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.normalized_shape, copy_to_ranks(self.weight, self.group), self.eps)


class SameDropout(nn.Dropout):
    """Dropout of an input that all ranks hold, with the mask of the first rank."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        mask = nn.functional.dropout(torch.ones_like(x), self.p)
        dist.broadcast(mask, group=self.group, group_src=0)
        return x * mask


def parallelize_module(module: nn.Module, plan: Plan, mesh: Mesh) -> LocalParameters:
    """Splits the layers of `module` over the ranks of the axis tensor, as `plan` says, for this rank.

    Parameters keep their names, and a parameter that two modules share stays shared.

    Args:
        module: on the meta device.

    Raises:
        ValueError: a layer has a number of units that cannot be split over so many ranks.
    """
    names = [name for name, _ in module.named_parameters()]
    if mesh.tensor == 1:
        return LocalParameters({}, frozenset(names))
    roles = _Roles(module, mesh)
    modules = dict(module.named_modules())
    for pattern, (role, units) in plan:
        matches = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        for name, found in modules.items():
            if matches.fullmatch(name):
                getattr(roles, role)(name, found, units)
    first = mesh.tensor_rank == 0
    counted = {name for name in names if (name in roles.counted if name in roles.slices else first)}
    return LocalParameters(roles.slices, frozenset(counted))


def _become(module: nn.Module, new_class: type[M]) -> M:
    """Makes a module an instance of a subclass, in place.

    The class is changed (as `fully_shard` of torch does it), and the module is not replaced by a new one, because other
    modules, hooks that were registered before, and the plan's other roles refer to this object.
    """
    assert isinstance(module, new_class.__bases__), f"{type(module).__name__} cannot become {new_class.__name__}"
    module.__class__ = new_class
    assert isinstance(module, new_class)
    return module


class _Roles:
    """One method for each role of a plan, and the slices of parameters that they have made."""

    def __init__(self, root: nn.Module, mesh: Mesh):
        self.mesh, self.group, self.rank, self.size = mesh, mesh.tensor_group, mesh.tensor_rank, mesh.tensor
        self.names = {parameter: name for name, parameter in root.named_parameters()}
        self.slices: dict[str, TensorSlice] = {}
        self.counted: set[str] = set()
        self._narrowed: dict[nn.Parameter, nn.Parameter] = {}
        self._replica_groups: dict[int, dist.ProcessGroup] = {}

    def column(self, name: str, module: nn.Linear, units: int) -> None:
        layer = _become(module, ColumnLinear)
        if units % self.size and self.size % units:
            raise ValueError(_too_few(name, units, self.size))
        copies = max(1, self.size // units)  # ranks that hold the same unit
        rows = layer.out_features // min(units, self.size)
        if copies > 1:
            layer.replicas = self._replicas(copies)
        for kind, parameter in list(layer.named_parameters(recurse=False)):
            self._narrow(layer, kind, parameter, 0, self.rank // copies * rows, rows, counted=self.rank % copies == 0)
        layer.out_features = rows

    def row(self, name: str, module: nn.Linear, units: int) -> None:
        layer = _become(module, RowLinear)
        if units % self.size:
            raise ValueError(_too_few(name, units, self.size))
        layer.group, layer.in_features = self.group, layer.in_features // self.size
        self._narrow(
            layer, "weight", layer.get_parameter("weight"), 1, self.rank * layer.in_features, layer.in_features
        )

    def vocabulary(self, name: str, module: nn.Embedding, units: int) -> None:
        layer = _become(module, VocabularyEmbedding)
        layer.group, (rows, layer.first, layer.size) = self.group, self._rows(layer.num_embeddings)
        self._narrow(layer, "weight", layer.get_parameter("weight"), 0, layer.first, layer.size, padded=rows)
        layer.num_embeddings = rows

    def vocabulary_head(self, name: str, head: Any, units: int) -> None:
        if not hasattr(head, "part"):  # the head of a task, which is small and stays whole
            return
        vocabulary = len(head.weight)
        rows, first, size = self._rows(vocabulary)
        for kind, parameter in list(head.named_parameters(recurse=False)):
            self._narrow(head, kind, parameter, 0, first, size, padded=rows)
        group = self.group
        head.part = head.make_part(
            first,
            size,
            vocabulary,
            enter=partial(copy_to_ranks, group=group),
            add=partial(all_reduce, group=group),
            maximum=partial(all_reduce, group=group, operation="max"),
            join=partial(_join_columns, vocabulary=vocabulary, rows=rows, group=group),
        )

    def norm(self, name: str, module: nn.Module, units: int) -> None:
        if isinstance(module, nn.LayerNorm):
            _become(module, SequenceLayerNorm).group = self.group
        elif isinstance(module, nn.RMSNorm):
            _become(module, SequenceRMSNorm).group = self.group

    def same_dropout(self, name: str, module: nn.Dropout, units: int) -> None:
        _become(module, SameDropout).group = self.group

    def gather(self, name: str, module: nn.Module, units: int) -> None:
        module.register_forward_pre_hook(lambda _, inputs: (gather_sequence(inputs[0], self.group), *inputs[1:]))

    def split(self, name: str, module: nn.Module, units: int) -> None:
        module.register_forward_pre_hook(lambda _, inputs: (split_sequence(inputs[0], self.group), *inputs[1:]))

    def join(self, name: str, module: nn.Module, units: int) -> None:
        module.register_forward_hook(lambda _, inputs, output: gather_replicated_sequence(output, self.group))

    def _rows(self, vocabulary: int) -> tuple[int, int, int]:
        """For this rank: the number of rows with padding, the first row, and the number of rows without padding."""
        rows = -(-vocabulary // self.size)
        return rows, self.rank * rows, min(rows, vocabulary - self.rank * rows)

    def _narrow(
        self,
        owner: nn.Module,
        kind: str,
        parameter: nn.Parameter,
        dim: int,
        start: int,
        size: int,
        *,
        padded: int | None = None,
        counted: bool = True,
    ) -> None:
        """Replaces a parameter of `owner` by a slice of it. Modules that share the parameter share the slice."""
        if parameter not in self._narrowed:
            name = self.names[parameter]
            self.slices[name] = TensorSlice(tuple(parameter.shape), dim, start, size)
            if counted:
                self.counted.add(name)
            shape = list(parameter.shape)
            shape[dim] = size if padded is None else padded
            zeros = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
            self._narrowed[parameter] = nn.Parameter(zeros, requires_grad=parameter.requires_grad)
        setattr(owner, kind, self._narrowed[parameter])

    def _replicas(self, copies: int) -> dist.ProcessGroup:
        """The group of `copies` consecutive tensor ranks that has this one. Each rank of the world makes all groups."""
        if copies not in self._replica_groups:
            self._replica_groups[copies] = self.mesh.consecutive_group(copies)
        return self._replica_groups[copies]


def _too_few(name: str, units: int, ranks: int) -> str:
    return f"{name}: {units} units cannot be split over parallel.tensor {ranks} ranks"


def _join_columns(logits: Tensor, *, vocabulary: int, rows: int, group: dist.ProcessGroup) -> Tensor:
    """The logits (..., V) from the logits (..., size) of each rank."""
    padded = nn.functional.pad(logits, (0, rows - logits.shape[-1]))
    columns_first = all_gather(padded.flatten(0, -2).T[None], group)[0]  # (V, N)
    return columns_first[:vocabulary].T.reshape(*logits.shape[:-1], vocabulary)
