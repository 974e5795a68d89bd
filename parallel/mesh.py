"""The rank of this process and its coordinates on the mesh.

The mesh has the axes data_replicate x data_shard x tensor. The tensor axis is the innermost one: ranks with the same
data coordinates have consecutive numbers, so that they are on one machine. The first two axes together are the data
ranks.
"""

import datetime
import gc
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ingot.parallel.mesh_sizes import sizes
from ingot.parallel.num_threads import num_threads
from ingot.parallel.open_files import (
    FILES_OF_PROCESS,
    LAZY,
    NUM_GROUPS_OF_ALL,
    STORE_CONNECTIONS_OF_SPLIT,
    lazy_connections,
    num_connections,
    raise_file_limit,
)
from ingot.parallel.rendezvous import connect
from ingot.parallel.torch_compat import fake_store, flattened, set_collective_timeout


class Groups:
    """Process groups of a mesh, by name: torch takes milliseconds to look one up.

    `stop` empties it, since whoever holds a group keeps the connections and the port of the rendezvous.
    """

    def __init__(self) -> None:
        self.found: dict[str, dist.ProcessGroup] = {}
        _GROUPS.add(self)

    def find(self, name: str, look_up: Callable[[], dist.ProcessGroup]) -> dist.ProcessGroup:
        if name not in self.found:
            self.found[name] = look_up()
        return self.found[name]


_GROUPS: weakref.WeakSet[Groups] = weakref.WeakSet()


@dataclass(frozen=True)
class Mesh:
    """Coordinates of this process. `data_rank` of `num_data` says which part of a global batch it reads.

    Attributes:
        tensor: number of ranks over which each layer is split.
        data_shard: number of data ranks over which engine `fsdp` shards parameters, gradients and optimizer. The
            `num_data / data_shard` groups of them are replicas.
        timeout_seconds, init_timeout_seconds: as in `start`.
        device_mesh: the same mesh as torch's class, with dims data_replicate, data_shard, tensor.
        groups: those that were looked up.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    tensor: int = 1
    data_shard: int = 1
    device_mesh: DeviceMesh | None = None
    groups: "Groups" = field(default_factory=lambda: Groups())
    timeout_seconds: int = 600
    init_timeout_seconds: int = 3600

    @property
    def num_data(self) -> int:
        return self.world_size // self.tensor

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor

    @property
    def data_group(self) -> dist.ProcessGroup:
        """The ranks that hold the same part of each layer and read different data."""
        return self.groups.find(
            "data", lambda: flattened(self.torch_mesh["data_replicate", "data_shard"], "data").get_group()
        )

    @property
    def tensor_group(self) -> dist.ProcessGroup:
        """The ranks that read the same data and hold different parts of each layer."""
        return self.groups.find("tensor", lambda: self.torch_mesh["tensor"].get_group())

    @property
    def control_group(self) -> dist.ProcessGroup | None:
        """All ranks over gloo, for what a thread exchanges beside the main thread. None: of one process."""
        return self.groups.found.get("control")

    def consecutive_group(self, size: int) -> dist.ProcessGroup:
        """The group of `size` ranks with consecutive numbers that has this rank. Each rank of the world must call it:
        it makes all these groups."""
        ranks = [list(range(first, first + size)) for first in range(0, self.world_size, size)]
        if getattr(dist.group.WORLD, "bound_device_id", None) is not None:
            group = dist.split_group(split_ranks=ranks)  # one call of NCCL, and not one for each group
            assert group is not None
        else:
            group = [dist.new_group(each) for each in ranks][self.rank // size]
        self.set_timeouts("long")
        return group

    @property
    def torch_mesh(self) -> DeviceMesh:
        """`device_mesh`, of a mesh that has one."""
        assert self.device_mesh is not None, "a mesh comes from start, reshape or fake_mesh"
        return self.device_mesh

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def set_timeouts(self, kind: Literal["long", "short"]) -> None:
        """Sets how long a collective may take, in all process groups that there are now. (It is none itself.)

        Args:
            kind: `short` is `timeout_seconds`, for steps. `long` is `init_timeout_seconds` if that is more, for where a
                rank may rightly wait for another: while a model is built, loaded and compiled, after evaluations and
                saves.
        """
        seconds = self.timeout_seconds
        if kind == "long":
            seconds = max(seconds, self.init_timeout_seconds)
        set_collective_timeout(datetime.timedelta(seconds=seconds))

    def describe(self, most: int = 16) -> str:
        """The sizes of the axes, and a table with the coordinates of the first `most` ranks."""
        lines = [
            f"{self.world_size} process(es) on {self.device.type}: data_replicate {self.num_data // self.data_shard} "
            f"x data_shard {self.data_shard} x tensor {self.tensor}"
        ]
        if self.world_size > 1:
            lines.append("  rank  data_replicate  data_shard  tensor  part of the data")
            for rank in range(min(self.world_size, most)):
                data, tensor = divmod(rank, self.tensor)
                replicate, shard = divmod(data, self.data_shard)
                lines.append(f"  {rank:4}  {replicate:14}  {shard:10}  {tensor:6}  {data + 1} of {self.num_data}")
            if self.world_size > most:
                lines.append(f"  ... and so on to rank {self.world_size - 1}")
        return "\n".join(lines)


_SET: set[str] = set()
"""The variables of the environment that `start` has set."""


def start(
    device: str = "auto",
    timeout_seconds: int = 600,
    tensor: int = 1,
    data_shard: int | None = None,
    rendezvous_seconds: int = 300,
    common: Mapping[str, str] = MappingProxyType({}),
    init_timeout_seconds: int = 3600,
) -> Mesh:
    """Joins the process group that the environment describes (variables that `deepspeed` and `torchrun` set).

    Without these variables the process is the only one.

    Args:
        device: `auto` (CUDA if there is one, else the CPU), `cuda` or `cpu`.
        timeout_seconds: how long a collective may take before it fails, after `Mesh.set_timeouts("short")`.
        tensor, data_shard: as in `sizes`.
        rendezvous_seconds: how long the rendezvous of all ranks may take.
        common: what all ranks must have in common, by name.
        init_timeout_seconds: how long a collective may take until then.

    Raises:
        ValueError: there is no CUDA device and `device` is cuda, a machine has more ranks than devices, the rendezvous
            fails or `common` differs between ranks (as in `connect`), or the sizes are wrong (as in `sizes`).
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    sizes(world_size, tensor, data_shard)  # refused before the ranks wait for each other
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("run.device is cuda, but torch sees no CUDA device here; use run.device cpu or auto")
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"local rank {local_rank} has no device: torch sees {torch.cuda.device_count()} CUDA devices; start as "
                f"many processes on each machine as it has devices"
            )
        torch.cuda.set_device(local_rank)
        target, backend = torch.device("cuda", local_rank), "cpu:gloo,cuda:nccl"
    else:
        # DeepSpeed would choose by what is installed.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if threads := num_threads(int(os.environ.get("LOCAL_WORLD_SIZE", world_size))):
            torch.set_num_threads(threads)
        target, backend = torch.device("cpu"), "gloo"

    timeout = datetime.timedelta(seconds=max(timeout_seconds, init_timeout_seconds))
    if world_size > 1:
        _set(LAZY, "1")
        _raise_file_limit(rank, world_size, tensor, device)
        connect(backend, rank, world_size, rendezvous_seconds, timeout, common)
    else:
        # One process needs no rendezvous, but DeepSpeed reads these variables.
        for name, value in {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }.items():
            _set(name, value)
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    mesh = Mesh(
        rank,
        world_size,
        local_rank,
        target,
        timeout_seconds=timeout_seconds,
        init_timeout_seconds=init_timeout_seconds,
    )
    return reshape(mesh, tensor, data_shard)


def _set(name: str, value: str) -> None:
    """Sets a variable of the environment until `stop`, if nobody has set it."""
    if name not in os.environ:
        os.environ[name] = value
        _SET.add(name)


def _raise_file_limit(rank: int, world_size: int, tensor: int, device: str) -> None:
    """Lets this process open a connection to each rank that it will talk to; see `raise_file_limit`."""
    data = world_size // tensor
    groups = [world_size] * NUM_GROUPS_OF_ALL + [data, data, data, tensor]  # data: replicas, shards, and both
    holds_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    of_store = 1 + STORE_CONNECTIONS_OF_SPLIT * len(groups[1:]) * (device == "cuda")
    connections = num_connections(
        rank, groups, holds_store=holds_store, lazy=lazy_connections(), store_connections=of_store
    )
    raise_file_limit(FILES_OF_PROCESS + connections, f"rank {rank} of a run with {world_size:,} ranks")


def fake_mesh(world_size: int, tensor: int = 1, data_shard: int | None = None) -> Mesh:
    """The mesh that rank 0 of `world_size` processes would see, in one process (torch's process group `fake`).

    Its collectives return at once and send nothing. A model on the meta device can be parallelized for it. `stop` ends
    it.
    """
    dist.init_process_group("fake", store=fake_store(), rank=0, world_size=world_size)
    return reshape(Mesh(0, world_size, 0, torch.device("cpu")), tensor, data_shard)


def reshape(mesh: Mesh, tensor: int = 1, data_shard: int | None = None) -> Mesh:
    """The same processes as a mesh of other sizes, as in `sizes`. Each rank must call it: it makes process groups."""
    shape = sizes(mesh.world_size, tensor, data_shard)
    device_mesh = init_device_mesh(mesh.device.type, shape, mesh_dim_names=("data_replicate", "data_shard", "tensor"))
    groups = Groups()
    if mesh.control_group is not None:
        groups.found["control"] = mesh.control_group
    elif mesh.world_size > 1 and dist.get_backend() != "fake":
        groups.found["control"] = dist.new_group(backend="gloo")
    mesh = replace(mesh, tensor=tensor, data_shard=shape[1], device_mesh=device_mesh, groups=groups)
    mesh.set_timeouts("long")  # of the groups of its axes
    return mesh


def sum_over_ranks(values: list[int], group: dist.ProcessGroup | None = None) -> list[int]:
    """Sums integers over all ranks modulo 2**64, on the CPU, by one collective. Each rank must call it.

    Args:
        group: of all ranks; None: the default group. Two threads need two groups.
    """
    tensor = torch.tensor([_signed(v) for v in values], dtype=torch.int64)
    dist.all_reduce(tensor, group=group)
    return [v % 2**64 for v in tensor.tolist()]


def _signed(value: int) -> int:
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


def stop() -> None:
    """Leaves the process group, if there is one, and takes back the variables that `start` has set.

    Other libraries in this process would take them for those of a launcher.
    """
    for groups in _GROUPS:
        groups.found.clear()
    if dist.is_initialized():
        several = dist.get_world_size() > 1
        dist.destroy_process_group()
        if several:
            gc.collect()  # modules whose methods were replaced refer to themselves, and to groups
    while _SET:
        os.environ.pop(_SET.pop(), None)
