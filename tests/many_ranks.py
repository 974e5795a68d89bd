"""Many real ranks on this machine, which start, train a toy model, and lose one of them."""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import torch

from ingot.launcher.runtime.exit_codes import run_main
from ingot.launcher.runtime.peer_watchdog import PeerWatchdog
from ingot.parallel import mesh as meshes
from ingot.parallel.open_files import LAZY
from tests.parallel.toy import LENGTH, VOCABULARY, build
from tests.ranks import free_port, process_context

STEPS = 2


@dataclass(frozen=True)
class Rank:
    """What one rank has counted and where it ended.

    Attributes:
        start_seconds: until the ranks had met and watched each other.
        step_seconds: of the last step.
        sockets, files: how many it had opened.
        group_sizes: of the process groups that it was in, the group of all first.
        losses: of the steps, the same on all ranks.
        code: the exit code.
        lost_seconds: from the death of the lost rank to the end of this one.
        output: what it printed.
    """

    start_seconds: float
    step_seconds: float
    sockets: int
    files: int
    group_sizes: Sequence[int]
    losses: Sequence[float]
    code: int | None
    lost_seconds: float
    output: str


def run_many_ranks(
    num_ranks: int,
    lost: int,
    folder: Path,
    *,
    steps: int = 2,
    children: int = 32,
    lazy: bool = True,
    timeout: float = 240.0,
) -> list[Rank]:
    """Starts ranks that train a toy model; when all have done so, rank `lost` kills itself. Waits for their ends.

    Args:
        children: ranks directly below a rank of the tree in which they watch each other.
        lazy: whether gloo connects ranks when they first need it; otherwise each pair at the start.
    """
    world = {LAZY: int(lazy), "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1"}
    world["MASTER_PORT"] = free_port()
    processes = [
        process_context().Process(target=_process, args=(world, rank, lost, folder, children))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    ends: dict[int, float] = {}
    end = time.monotonic() + timeout
    try:
        rank_of = {process.sentinel: rank for rank, process in enumerate(processes)}
        while len(ends) < num_ranks:
            assert time.monotonic() < end, f"ranks {sorted(set(range(num_ranks)) - set(ends))} still run"
            for sentinel in wait([s for s, rank in rank_of.items() if rank not in ends], timeout=1):
                ends[rank_of[sentinel]] = time.time()
    finally:
        for process in processes:
            process.kill()
    death = float((folder / "death").read_text())
    return [
        Rank(
            **json.loads((folder / f"rank-{rank}").read_text()),
            code=process.exitcode,
            lost_seconds=ends[rank] - death,
            output=(folder / f"log-{rank}").read_text(),
        )
        for rank, process in enumerate(processes)
    ]


def _process(world: dict, rank: int, lost: int, folder: Path, children: int) -> None:
    os.environ.update({name: str(value) for name, value in world.items()} | {"RANK": str(rank), "LOCAL_RANK": "0"})
    descriptor = os.open(folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    run_main(lambda _: _train_and_wait(lost, folder, children))


def _train_and_wait(lost: int, folder: Path, children: int) -> int:
    start, before = time.perf_counter(), _open_files()
    with PeerWatchdog() as watchdog:
        mesh = meshes.start("cpu", common={"steps": str(STEPS)})
        watchdog.connect(mesh.rank, mesh.world_size, children)
        meshes.sum_over_ranks([0])
        counted = {"start_seconds": time.perf_counter() - start}
        engine = build("fsdp", mesh)
        engine.num_parameters()  # gathers on rank 0
        losses = []
        for step in range(STEPS):
            start = time.perf_counter()
            meshes.sum_over_ranks([0], mesh.control_group)
            input_ids = torch.randint(0, VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(step))
            num_targets = LENGTH * mesh.world_size
            loss = engine.forward_backward(
                {"input_ids": input_ids, "labels": (input_ids + 3) % VOCABULARY}, num_targets, True
            )
            engine.step(1e-2)
            torch.distributed.all_reduce(loss)
            losses.append(float(loss) / num_targets)
        counted |= {"step_seconds": time.perf_counter() - start, "losses": losses}
        torch.distributed.barrier()
        groups = torch.distributed.distributed_c10d._world.pg_map
        counted |= {name: number - before[name] for name, number in _open_files().items()}
        counted["group_sizes"] = [group.size() for group in groups]
        Path(folder, f"rank-{mesh.rank}").write_text(json.dumps(counted))
        torch.distributed.barrier()
        if mesh.rank == lost:
            Path(folder, "death").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            meshes.sum_over_ranks([0])
            time.sleep(0.05)


def _open_files() -> dict:
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # of the listing itself
            continue
    return {"sockets": sum(link.startswith("socket:") for link in links), "files": len(links)}
