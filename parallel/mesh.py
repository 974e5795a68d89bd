"""Who this process is: its rank in the world and its coordinates on the mesh.

The mesh is data_replicate x data_shard x tensor. The tensor axis is the fastest: ranks that share a data coordinate
are neighbours.
"""

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Mesh:
    """Coordinates of this process. `data_rank` of `num_data` says which share of a global batch it reads."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    tensor: int = 1

    @property
    def num_data(self) -> int:
        return self.world_size // self.tensor

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def describe(self) -> str:
        return f"{self.world_size} process(es) on {self.device.type}: data {self.num_data} x tensor {self.tensor}"


def start(device: str = "auto", timeout_seconds: int = 1800) -> Mesh:
    """Joins the process group that `deepspeed`, `torchrun` or nobody (one process) has announced in the environment.

    Args:
        device: `auto` (CUDA where there is one, else CPU), `cuda` or `cpu`.
        timeout_seconds: how long a collective may take before the process gives up.

    Raises:
        ValueError: CUDA is asked for and not there, or there are more local ranks than devices.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
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
    if "MASTER_ADDR" in os.environ and world_size > 1:
        dist.init_process_group(backend, timeout=timeout)
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
    return Mesh(rank, world_size, local_rank, target)


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
