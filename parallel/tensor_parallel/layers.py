"""Tensor parallelism with sequence parallelism: a plan says which modules of a model are split over the tensor ranks.

A plan lists patterns of module names. Each has a role, and the number of units of its outputs or inputs. A unit, such
as an attention head, is never split.

| role            | what happens to the module                                                                      |
|-----------------|-------------------------------------------------------------------------------------------------|
| vocabulary      | embedding: a rank holds some of the rows, and the results are summed                            |
| vocabulary_head | head: a rank holds some of the rows, and its loss is summed over the ranks                      |
| only_head       | the same of a head that takes the joined output as it is, with nothing else that takes it: the  |
|                 | gradient of the joined output is then summed and split at once                                  |
| column          | linear layer: a rank holds some of the outputs, in whole units; if there are fewer units than   |
|                 | ranks, several ranks hold the same unit                                                         |
| row             | linear layer: a rank holds some of the inputs; the results are summed and split by tokens       |
| norm            | works on some tokens or on some heads: each rank has a part of its gradients                    |
| gather          | its first input is gathered to all tokens                                                       |
| split           | its first input is split by tokens                                                              |
| join            | its output is gathered to all tokens; after it, all ranks compute the same                      |
| same_dropout    | drops the same elements on all ranks                                                            |

A parameter that several ranks hold (a norm, the bias of a row layer, a unit of a column layer with few units) gets a
part of its gradient on each. `sum_each_use` decides who sums the parts: the layer, at each use in the backward pass, or
the engine, once a step for all of them.

Sources: Megatron-LM (arXiv 1909.08053) and its sequence parallelism (arXiv 2205.05198).
"""

import re
from dataclasses import replace
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
    gather_for_head,
    gather_replicated_sequence,
    gather_sequence,
    reduce_from_ranks,
    reduce_scatter_sequence,
    split_sequence,
)
from ingot.parallel.tensor_shards import TensorSlice
from ingot.parallel.torch_compat import pipeline_exchanges

Plan = list[tuple[str, tuple[str, int]]]
M = TypeVar("M", bound=nn.Module)


class ColumnLinear(nn.Linear):
    """Holds some of the outputs. `replicas` are the ranks that hold the same ones, and over which it sums gradients;
    None: it does not."""

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
    sums_bias: bool

    def forward(self, x_BTD: Tensor) -> Tensor:
        out_BTD = reduce_scatter_sequence(self.product(x_BTD, self.weight), self.group)
        if self.bias is None:
            return out_BTD
        return out_BTD + (copy_to_ranks(self.bias, self.group) if self.sums_bias else self.bias)

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


def parallelize_module(module: nn.Module, plan: Plan, mesh: Mesh, *, sum_each_use: bool = True) -> LocalParameters:
    """Splits the layers of `module` over the ranks of the axis tensor, as `plan` says, for this rank.

    Parameters keep their names, and a parameter that two modules share stays shared.

    Args:
        module: on the meta device.
        sum_each_use: whether layers sum partial gradients at each use. Otherwise the result names them in `partial`.

    Raises:
        ValueError: a layer has a number of units that cannot be split over so many ranks.
    """
    names = [name for name, _ in module.named_parameters()]
    if mesh.tensor == 1:
        return LocalParameters({}, frozenset(names))
    roles = _Roles(module, mesh, sum_each_use)
    modules = dict(module.named_modules())
    for pattern, (role, units) in plan:
        matches = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        for name, found in modules.items():
            if matches.fullmatch(name):
                getattr(roles, role)(name, found, units)
    first = mesh.tensor_rank == 0
    counted = {name for name in names if (name in roles.counted if name in roles.slices else first)}
    return LocalParameters(roles.slices, frozenset(counted), roles.partial)


def overlap_exchanges(mesh: Mesh) -> None:
    """Lets compiled blocks exchange activations among tensor ranks while they compute the products before or behind.

    Asynchronous tensor parallelism (torch's `_micro_pipeline_tp`): a gather and the product of its result, or a product
    and the sum of its result over ranks, become one operator that works on one rank's part while the next is sent.

    Raises:
        ValueError: this machine cannot.
    """
    if mesh.device.type != "cuda":
        raise ValueError(
            f"parallel.async_tensor_parallel needs GPUs that read each other's memory (CUDA, NVLink), and run.device "
            f"is {mesh.device.type}; set it to false"
        )
    pipeline_exchanges(mesh.tensor_group)


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

    def __init__(self, root: nn.Module, mesh: Mesh, sum_each_use: bool):
        self.mesh, self.group, self.rank, self.size = mesh, mesh.tensor_group, mesh.tensor_rank, mesh.tensor
        self.names = {parameter: name for name, parameter in root.named_parameters()}
        self.slices: dict[str, TensorSlice] = {}
        self.counted: set[str] = set()
        self.partial: dict[str, dist.ProcessGroup] = {}
        self.sum_each_use = sum_each_use
        self.joined_by = gather_replicated_sequence
        self._narrowed: dict[nn.Parameter, nn.Parameter] = {}
        self._replica_groups: dict[int, dist.ProcessGroup] = {}

    def column(self, name: str, module: nn.Linear, units: int) -> None:
        layer = _become(module, ColumnLinear)
        if units % self.size and self.size % units:
            raise ValueError(_too_few(name, units, self.size))
        copies = max(1, self.size // units)  # ranks that hold the same unit
        rows = layer.out_features // min(units, self.size)
        replicas = self._replicas(copies) if copies > 1 else None
        if self.sum_each_use:
            layer.replicas = replicas
        for kind, parameter in list(layer.named_parameters(recurse=False)):
            self._narrow(layer, kind, parameter, 0, self.rank // copies * rows, rows, counted=self.rank % copies == 0)
            if replicas is not None and not self.sum_each_use:
                self.partial[self.names[parameter]] = replicas
        layer.out_features = rows

    def row(self, name: str, module: nn.Linear, units: int) -> None:
        layer = _become(module, RowLinear)
        if units % self.size:
            raise ValueError(_too_few(name, units, self.size))
        layer.group, layer.in_features = self.group, layer.in_features // self.size
        layer.sums_bias = self.sum_each_use
        if layer.bias is not None and not self.sum_each_use:
            self.partial[self.names[layer.bias]] = self.group
        self._narrow(
            layer, "weight", layer.get_parameter("weight"), 1, self.rank * layer.in_features, layer.in_features
        )

    def vocabulary(self, name: str, module: nn.Embedding, units: int) -> None:
        layer = _become(module, VocabularyEmbedding)
        layer.group, (rows, layer.first, layer.size) = self.group, self._rows(layer.num_embeddings)
        self._narrow(layer, "weight", layer.get_parameter("weight"), 0, layer.first, layer.size, padded=rows)
        layer.num_embeddings = rows

    def only_head(self, name: str, head: Any, units: int) -> None:
        if hasattr(head, "part"):
            self.vocabulary_head(name, head, units)
            head.part = replace(head.part, enter=_as_it_is)
            self.joined_by = gather_for_head

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
        if not self.sum_each_use:
            self.partial |= {self.names[parameter]: self.group for parameter in module.parameters()}
        elif isinstance(module, nn.LayerNorm):
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
        module.register_forward_hook(lambda _, inputs, output: self.joined_by(output, self.group))

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


def _as_it_is(hidden: Tensor) -> Tensor:
    return hidden


def _too_few(name: str, units: int, ranks: int) -> str:
    return f"{name}: {units} units cannot be split over parallel.tensor {ranks} ranks"


def _join_columns(logits: Tensor, *, vocabulary: int, rows: int, group: dist.ProcessGroup) -> Tensor:
    """The logits (..., V) from the logits (..., size) of each rank."""
    padded = nn.functional.pad(logits, (0, rows - logits.shape[-1]))
    columns_first = all_gather(padded.flatten(0, -2).T[None], group)[0]  # (V, N)
    return columns_first[:vocabulary].T.reshape(*logits.shape[:-1], vocabulary)
