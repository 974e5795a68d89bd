"""Counts the collectives of real ranks, and the bytes that a ring sends for them."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

_KINDS = {
    "allreduce_": "all_reduce",
    "all_reduce": "all_reduce",
    "all_reduce_": "all_reduce",
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_out": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "reduce_": "reduce",
    "broadcast_": "broadcast",
    "alltoall_base_": "all_to_all",
    "barrier": "barrier",
}


@dataclass
class Traffic(TorchDispatchMode):
    """While it is entered: the number of collectives and the bytes a rank sends for them, by kind and size of group.

    Both are sums over what this rank took part in. A ring sends (n - 1) / n of what is gathered or reduced, and twice
    as much for an all-reduce. (For a reduction to one rank, the mean over the ranks is counted.)
    """

    calls: Counter = field(default_factory=Counter)
    sent: Counter = field(default_factory=Counter)
    at_least: int = 0
    """Collectives of fewer bytes (a gradient norm) are not counted."""

    def __post_init__(self):
        super().__init__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, _, operation = function._schema.name.partition("::")
        if name in ("c10d", "_c10d_functional") and operation not in ("wait_tensor", "monitored_barrier_"):
            self._count(_KINDS[operation], [*args, *(kwargs or {}).values()])
        return function(*args, **(kwargs or {}))

    def _count(self, kind: str, arguments: list[Any]) -> None:
        ranks = next(size for argument in arguments if (size := _ranks(argument)))
        # Input and output may both be there: the larger one is the whole.
        size = max((_bytes(argument) for argument in arguments), default=0)
        if kind == "all_gather" and isinstance(arguments[1], int):  # a functional one has its input only
            size *= ranks
        if ranks == 1 or size < self.at_least:
            return
        self.calls[kind, ranks] += 1
        self.sent[kind, ranks] += (2 if kind == "all_reduce" else 1) * (ranks - 1) / ranks * size

    def total(self, ranks: int | None = None) -> float:
        """Bytes sent in groups of so many ranks."""
        return sum(size for (_, n), size in self.sent.items() if ranks in (None, n))

    def number(self, kind: str, ranks: int | None = None) -> int:
        return sum(count for (name, n), count in self.calls.items() if name == kind and ranks in (None, n))


def _bytes(argument: Any) -> int:
    if isinstance(argument, torch.Tensor):
        return argument.numel() * argument.element_size()
    return sum(map(_bytes, argument)) if isinstance(argument, list | tuple) else 0


def _ranks(argument: Any) -> int:
    if isinstance(argument, str) and argument not in ("sum", "avg", "max", "min"):
        return dist.distributed_c10d._resolve_process_group(argument).size()
    if isinstance(argument, torch.ScriptObject) and "ProcessGroup" in str(argument._type()):
        return dist.ProcessGroup.unbox(argument).size()
    return 0
