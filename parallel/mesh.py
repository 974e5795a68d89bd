"""Who this process is: its rank in the world and its coordinates on the mesh.

The mesh is data_replicate x data_shard x tensor. The tensor axis is the fastest: ranks that share a data coordinate
are neighbours, so that they sit on one machine. The first two axes together are the data ranks.
"""

import datetime
import os
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ingot.parallel.mesh_sizes import sizes
from ingot.parallel.rendezvous import connect


@dataclass(frozen=True)
class Mesh:
    """Coordinates of this process. `data_rank` of `num_data` says which share of a global batch it reads.

    Attributes:
        tensor: ranks that share each layer.
        shard: data ranks over which engine `fsdp` cuts parameters, gradients and optimizer; each of the
            `num_data / shard` groups of them holds the same.
        devices: the same mesh for torch, with dims data_replicate, data_shard, tensor.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    tensor: int = 1
    shard: int = 1
    devices: DeviceMesh | None = None

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
        return self.devices["data_replicate", "data_shard"]._flatten("data").get_group()

    @property
    def tensor_group(self) -> dist.ProcessGroup:
        """The ranks that read the same data and share each layer."""
        return self.devices["tensor"].get_group()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def describe(self, most: int = 16) -> str:
        """The sizes, and a table of what each rank is, of the first `most` ranks."""
        lines = [
            f"{self.world_size} process(es) on {self.device.type}: data_replicate {self.num_data // self.shard} "
            f"x data_shard {self.shard} x tensor {self.tensor}"
        ]
        if self.world_size > 1:
            lines.append("  rank  data_replicate  data_shard  tensor  share of the data")
            for rank in range(min(self.world_size, most)):
                data, tensor = divmod(rank, self.tensor)
                replicate, shard = divmod(data, self.shard)
                lines.append(f"  {rank:4}  {replicate:14}  {shard:10}  {tensor:6}  {data + 1} of {self.num_data}")
            if self.world_size > most:
                lines.append(f"  ... and so on to rank {self.world_size - 1}")
        return "\n".join(lines)


def start(
    device: str = "auto",
    timeout_seconds: int = 1800,
    tensor: int = 1,
    shard: int | None = None,
    rendezvous_seconds: int = 300,
) -> Mesh:
    """Joins the process group that `deepspeed`, `torchrun` or nobody (one process) has announced in the environment.

    Args:
        device: `auto` (CUDA where there is one, else CPU), `cuda` or `cpu`.
        timeout_seconds: how long a collective may take before the process gives up.
        tensor, shard: as in `sizes`.
        rendezvous_seconds: how long the ranks may take to meet.

    Raises:
        ValueError: CUDA is asked for and not there, there are more local ranks than devices, the ranks do not meet in
            time (as in `connect`), or from `sizes`.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    sizes(world_size, tensor, shard)
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("run.device is cuda, but torch sees no CUDA device here; use run.device cpu or auto")
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"local rank {local_rank} has no device: torch sees {torch.cuda.device_count()} CUDA devices"
            )
        torch.cuda.set_device(local_rank)
        target, backend = torch.device("cuda", local_rank), "cpu:gloo,cuda:nccl"
    else:
        os.environ.setdefault(
            "DS_ACCELERATOR", "cpu"
        )  # DeepSpeed guesses from what is installed, not from what is asked
        _share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
        target, backend = torch.device("cpu"), "gloo"

    timeout = datetime.timedelta(seconds=timeout_seconds)
    if world_size > 1:
        connect(backend, rank, world_size, rendezvous_seconds, timeout)
    else:
        # One process needs no rendezvous; DeepSpeed reads these variables even so.
        for name, value in {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }.items():
            os.environ.setdefault(name, value)
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    return reshape(Mesh(rank, world_size, local_rank, target), tensor, shard)


def pretend(world_size: int, tensor: int = 1, shard: int | None = None) -> Mesh:
    """The mesh of rank 0 of a world that does not exist: its collectives return at once and move nothing.

    Models on the meta device can be cut for it, whatever its size. `stop` ends it.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    return reshape(Mesh(0, world_size, 0, torch.device("cpu")), tensor, shard)


def reshape(mesh: Mesh, tensor: int = 1, shard: int | None = None) -> Mesh:
    """The same processes as a mesh of other sizes, as in `sizes`. Makes process groups, so each rank must call it."""
    shape = sizes(mesh.world_size, tensor, shard)
    devices = init_device_mesh(mesh.device.type, shape, mesh_dim_names=("data_replicate", "data_shard", "tensor"))
    return replace(mesh, tensor=tensor, shard=shape[1], devices=devices)


def _share_cores(num_local_ranks: int) -> None:
    """Gives each local process its share of the cores, where the user has not said otherwise with OMP_NUM_THREADS.

    The launchers set OMP_NUM_THREADS to 1 by themselves, which would leave cores idle, so 1 counts as not said.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_local_ranks))


def sum_over_ranks(values: list[int]) -> list[int]:
    """Sums integers over all ranks modulo 2**64, on the CPU. One collective, so each rank must call it."""
    tensor = torch.tensor([_signed(v) for v in values], dtype=torch.int64)
    dist.all_reduce(tensor)
    return [v % 2**64 for v in tensor.tolist()]


def _signed(value: int) -> int:
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
