"""Tensor parallelism with sequence parallelism: layers that hold a part of their weight, put in from outside by a plan.

A plan lists patterns of module names with a role (and the number of units that its outputs or inputs consist of):

| role            | what becomes of the module                                                                      |
|-----------------|-------------------------------------------------------------------------------------------------|
| vocabulary      | embedding that holds some of the rows; results are summed                                        |
| vocabulary_head | head that holds some of the rows; its loss is summed up over all of them                          |
| column          | linear layer that holds some of the outputs, in whole units; where there are fewer units than   |
|                 | ranks, several ranks hold the same one                                                          |
| row             | linear layer that holds some of the inputs; results are summed and cut along the sequence         |
| norm            | unchanged, on a part of the sequence or on some heads: its gradients are summed                   |
| gather          | its first input is gathered to whole sequences                                                    |
| split           | its first input is cut along the sequence                                                         |
| join            | its output is gathered to whole sequences, from where on all ranks do the same                    |
| same_dropout    | drops the same on all ranks                                                                       |

Source of the scheme: Megatron-LM (arXiv 1909.08053) and its sequence parallelism (arXiv 2205.05198).
"""

import re
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ingot.parallel.catalog import Placement
from ingot.parallel.engines.engine import Shares
from ingot.parallel.mesh import Mesh
from ingot.parallel.tensor_parallel.collectives import (
    all_gather,
    all_reduce,
    copy,
    gather,
    gather_same,
    scatter_sum,
    split,
    total,
)

Plan = list[tuple[str, tuple[str, int]]]


class ColumnLinear(nn.Linear):
    """Holds some of the outputs. `replicas`: the ranks that hold the same ones, None for this rank alone."""

    replicas: dist.ProcessGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if self.replicas is not None:
            weight, bias = copy(weight, self.replicas), None if bias is None else copy(bias, self.replicas)
        return nn.functional.linear(x, weight, bias)


class RowLinear(nn.Linear):
    """Holds some of the inputs, and the whole bias."""

    group: dist.ProcessGroup

    def forward(self, x_BTD: Tensor) -> Tensor:
        out_BTD = scatter_sum(nn.functional.linear(x_BTD, self.weight), self.group)
        return out_BTD if self.bias is None else out_BTD + copy(self.bias, self.group)


class VocabularyEmbedding(nn.Embedding):
    """Holds the rows [first, first + size) of the table, and maybe some more as padding."""

    group: dist.ProcessGroup
    first: int
    size: int

    def forward(self, ids: Tensor) -> Tensor:
        local = ids - self.first
        is_here = (local >= 0) & (local < self.size)
        rows = nn.functional.embedding(local.where(is_here, 0), self.weight)
        return total(rows * is_here[..., None], self.group)


class SequenceLayerNorm(nn.LayerNorm):
    """A LayerNorm over a part of what it is applied to."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else copy(self.bias, self.group)
        return nn.functional.layer_norm(x, self.normalized_shape, copy(self.weight, self.group), bias, self.eps)


class SequenceRMSNorm(nn.RMSNorm):
    """An RMSNorm over a part of what it is applied to."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.normalized_shape, copy(self.weight, self.group), self.eps)


class SameDropout(nn.Dropout):
    """Dropout of what all ranks hold alike: with the mask of the first one."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        mask = nn.functional.dropout(torch.ones_like(x), self.p)
        dist.broadcast(mask, group=self.group, group_src=0)
        return x * mask


def share(module: nn.Module, plan: Plan, mesh: Mesh) -> Shares:
    """Cuts the layers of `module`, which is on the meta device, as `plan` says, for this rank of `mesh.tensor`.

    Parameters keep their names, and a parameter that two modules share stays shared.

    Raises:
        ValueError: a layer has a number of units that cannot be shared by so many ranks.
    """
    names = [name for name, _ in module.named_parameters()]
    if mesh.tensor == 1:
        return Shares({}, frozenset(names))
    cutter = _Cutter(module, mesh)
    modules = dict(module.named_modules())
    for pattern, (role, units) in plan:
        matches = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        for name, found in modules.items():
            if matches.fullmatch(name):
                getattr(cutter, role)(name, found, units)
    first = mesh.tensor_rank == 0
    counted = {name for name in names if (name in cutter.counted if name in cutter.placements else first)}
    return Shares(cutter.placements, frozenset(counted))


class _Cutter:
    """One method for each role."""

    def __init__(self, root: nn.Module, mesh: Mesh):
        self.mesh, self.group, self.rank, self.size = mesh, mesh.tensor_group, mesh.tensor_rank, mesh.tensor
        self.names = {parameter: name for name, parameter in root.named_parameters()}
        self.placements: dict[str, Placement] = {}
        self.counted: set[str] = set()
        self._cut: dict[nn.Parameter, nn.Parameter] = {}
        self._replica_groups: dict[int, dist.ProcessGroup] = {}

    def column(self, name: str, layer: nn.Linear, units: int) -> None:
        layer.__class__ = ColumnLinear
        if units % self.size and self.size % units:
            raise ValueError(f"{name}: {units} units cannot be shared by parallel.tensor {self.size} ranks")
        copies = max(1, self.size // units)  # ranks that hold the same unit
        rows = layer.out_features // min(units, self.size)
        if copies > 1:
            layer.replicas = self._replicas(copies)
        for kind, parameter in list(layer.named_parameters(recurse=False)):
            self._narrow(layer, kind, parameter, 0, self.rank // copies * rows, rows, counted=self.rank % copies == 0)
        layer.out_features = rows

    def row(self, name: str, layer: nn.Linear, units: int) -> None:
        layer.__class__ = RowLinear
        if units % self.size:
            raise ValueError(f"{name}: {units} units cannot be shared by parallel.tensor {self.size} ranks")
        layer.group, layer.in_features = self.group, layer.in_features // self.size
        self._narrow(layer, "weight", layer.weight, 1, self.rank * layer.in_features, layer.in_features)

    def vocabulary(self, name: str, layer: nn.Embedding, units: int) -> None:
        layer.__class__ = VocabularyEmbedding
        layer.group, (rows, layer.first, layer.size) = self.group, self._rows(layer.num_embeddings)
        self._narrow(layer, "weight", layer.weight, 0, layer.first, layer.size, padded=rows)
        layer.num_embeddings = rows

    def vocabulary_head(self, name: str, head: nn.Module, units: int) -> None:
        if not hasattr(head, "part"):  # the head of a task
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
            enter=partial(copy, group=group),
            add=partial(all_reduce, group=group),
            maximum=partial(all_reduce, group=group, operation="max"),
            join=partial(_join_columns, vocabulary=vocabulary, rows=rows, group=group),
        )

    def norm(self, name: str, module: nn.Module, units: int) -> None:
        if isinstance(module, nn.LayerNorm):
            module.__class__, module.group = SequenceLayerNorm, self.group
        elif isinstance(module, nn.RMSNorm):
            module.__class__, module.group = SequenceRMSNorm, self.group

    def same_dropout(self, name: str, module: nn.Dropout, units: int) -> None:
        module.__class__, module.group = SameDropout, self.group

    def gather(self, name: str, module: nn.Module, units: int) -> None:
        module.register_forward_pre_hook(lambda _, inputs: (gather(inputs[0], self.group), *inputs[1:]))

    def split(self, name: str, module: nn.Module, units: int) -> None:
        module.register_forward_pre_hook(lambda _, inputs: (split(inputs[0], self.group), *inputs[1:]))

    def join(self, name: str, module: nn.Module, units: int) -> None:
        module.register_forward_hook(lambda _, inputs, output: gather_same(output, self.group))

    def _rows(self, vocabulary: int) -> tuple[int, int, int]:
        """Rows of a vocabulary with padding, the first of this rank's, and how many of them are real."""
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
        """Puts a part of a parameter in its place, the same one wherever the same parameter stood."""
        if parameter not in self._cut:
            name = self.names[parameter]
            self.placements[name] = Placement(tuple(parameter.shape), dim, start, size)
            if counted:
                self.counted.add(name)
            shape = list(parameter.shape)
            shape[dim] = size if padded is None else padded
            zeros = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
            self._cut[parameter] = nn.Parameter(zeros, requires_grad=parameter.requires_grad)
        setattr(owner, kind, self._cut[parameter])

    def _replicas(self, copies: int) -> dist.ProcessGroup:
        """The `copies` neighbouring tensor ranks around this one. Every rank of the world makes every group."""
        if copies not in self._replica_groups:
            mine = self.mesh.rank // copies
            for number in range(self.mesh.world_size // copies):
                group = dist.new_group(list(range(number * copies, (number + 1) * copies)))
                if number == mine:
                    self._replica_groups[copies] = group
        return self._replica_groups[copies]


def _join_columns(logits: Tensor, *, vocabulary: int, rows: int, group: dist.ProcessGroup) -> Tensor:
    """Logits (..., V) of all ranks' (..., size)."""
    padded = nn.functional.pad(logits, (0, rows - logits.shape[-1]))
    columns_first = all_gather(padded.flatten(0, -2).T[None], group)[0]  # (V, N)
    return columns_first[:vocabulary].T.reshape(*logits.shape[:-1], vocabulary)
