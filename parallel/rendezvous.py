"""The rendezvous of all ranks at MASTER_ADDR:MASTER_PORT, with a time limit, before there is a process group.

A store of torch listens at this address: rank 0 holds it, or, under torchrun, the launcher of the first machine. Each
rank registers there. When all ranks have done so, the process group is made. A collective may take half an hour, but a
rank that is missing at the start should be reported in minutes.
"""

import datetime
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TypeVar

import torch
import torch.distributed as dist

from ingot.parallel.agreement import agree
from ingot.parallel.torch_compat import set_collective_timeout

T = TypeVar("T")

CONNECT_SECONDS = 10  # the process group has at least so long, even if the last rank was late
NCCL_CONNECT_SECONDS = 120  # the same where it connects devices too
CLOSING_SECONDS = 2  # gloo has so long to fail by itself, with a reason
MOST_NAMED = 8  # missing ranks in a message


def join_rendezvous(rank: int, world_size: int, seconds: float) -> dist.Store:
    """Waits until all `world_size` ranks have registered, and returns the store.

    Args:
        seconds: the time limit for all of it.

    Raises:
        ValueError: MASTER_ADDR or MASTER_PORT is missing or wrong, rank 0 cannot listen there, no process listens
            there, some ranks have not registered in time, or two processes have the same rank. The message has the
            address, the missing ranks, and what to check.
    """
    host, port = _address()
    end = time.monotonic() + seconds
    store_of_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if rank == 0 and not store_of_launcher:
        store = _listen(host, port, seconds)
    else:
        holder = "the torchrun of the first machine" if store_of_launcher else "rank 0"
        store = _call(host, port, rank, holder, end, seconds)
    store = dist.PrefixStore(f"rendezvous-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    try:
        _register(store, rank, world_size, f"{host}:{port}")
        pause = 0.01
        while not store.check(["all"]):
            if time.monotonic() > end:
                raise ValueError(_who_is_missing(store, rank, world_size, f"{host}:{port}", seconds))
            time.sleep(pause)
            pause = min(1.0, 1.5 * pause)
    except RuntimeError as error:
        raise ValueError(
            f"rank {rank} had registered at {host}:{port}, and then the process that held the rendezvous ended; its "
            f"own message says why ({_first_line(error)})"
        ) from None
    return store


def connect(
    backend: str,
    rank: int,
    world_size: int,
    rendezvous_seconds: float,
    timeout: datetime.timedelta,
    common: Mapping[str, str],
) -> None:
    """Waits for all ranks and makes the default process group, whose collectives may take `timeout` each.

    With NCCL in `backend` the group is bound to this process's device: NCCL connects the devices here, so that a fabric
    that does not work is reported here and not in the first step, and later groups are split from this one
    (ncclCommSplit) and need no rendezvous of their own.

    Args:
        common: what all ranks must have in common, by name.

    Raises:
        ValueError: as in `join_rendezvous` and `agree`, or the ranks have met and could not connect to each other.
    """
    end = time.monotonic() + rendezvous_seconds
    store = join_rendezvous(rank, world_size, rendezvous_seconds)
    agree(dist.PrefixStore("common", store), rank, world_size, common, max(CONNECT_SECONDS, end - time.monotonic()))
    device = torch.device("cuda", torch.cuda.current_device()) if "nccl" in backend else None
    least = CONNECT_SECONDS if device is None else NCCL_CONNECT_SECONDS
    left = datetime.timedelta(seconds=max(least, end - time.monotonic()))
    store.set_timeout(left)

    def join() -> None:
        if device is not None:
            torch.cuda.set_device(device)  # each thread has its own current device
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=world_size,
            timeout=left,
            device_id=device,
        )
        dist.all_reduce(torch.zeros(1))  # gloo connects neighbours when they first need it

    try:
        _within(left.total_seconds() + CLOSING_SECONDS, join)
    except RuntimeError as error:
        raise ValueError(
            f"rank {rank} on {socket.gethostname()} met all other ranks at {':'.join(map(str, _address()))}, but could "
            f"not connect to each of them directly ({_first_line(error)}). The usual reasons are a wrong network "
            f"interface and a firewall between the machines: set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the "
            f"interface that connects them"
        ) from None
    store.set_timeout(timeout)
    set_collective_timeout(timeout)


def _address() -> tuple[str, int]:
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"MASTER_ADDR is {host!r} and MASTER_PORT is {port!r} in an environment with WORLD_SIZE above 1: expected "
            f"the address of rank 0's machine and a port from 1 to 65535. The launchers (torchrun, deepspeed) set both"
        )
    return host, int(port)


def _listen(host: str, port: int, seconds: float) -> dist.Store:
    """Rank 0's part. It reaches its own store at localhost, so a wrong MASTER_ADDR is reported by the other ranks."""
    try:
        return dist.TCPStore("localhost", port, None, True, datetime.timedelta(seconds=seconds), wait_for_workers=False)
    except RuntimeError as error:
        reason = (
            "another process listens there, perhaps another run or one that has not ended yet. Choose another port "
            "(--master_port of torchrun and deepspeed), or end that process"
            if "EADDRINUSE" in str(error)
            else _first_line(error)
        )
        raise ValueError(f"rank 0 cannot listen at {host}:{port}: {reason}") from None


def _call(host: str, port: int, rank: int, holder: str, end: float, seconds: float) -> dist.Store:
    """Connects to the store, again and again: machines and their names may become reachable later."""
    while True:
        try:
            with closing(socket.create_connection((host, port), timeout=max(0.1, min(5.0, end - time.monotonic())))):
                break
        except OSError as error:
            if time.monotonic() + 0.5 > end:
                raise ValueError(
                    f"rank {rank} on {socket.gethostname()} tried for {seconds:g} seconds "
                    f"(parallel.rendezvous_seconds) to reach {holder} at {host}:{port}: {_why(error, host)}"
                ) from None
            time.sleep(0.5)
    left = max(1.0, end - time.monotonic())
    try:
        return _within(
            left,
            lambda: dist.TCPStore(host, port, None, False, datetime.timedelta(seconds=left), wait_for_workers=False),
        )
    except RuntimeError:
        raise ValueError(
            f"something listens at {host}:{port}, but it does not answer rank {rank} as {holder} would. Perhaps the "
            f"port belongs to another program: choose another one (--master_port of torchrun and deepspeed)"
        ) from None


def _within(seconds: float, function: Callable[[], T]) -> T:
    """Calls a function of torch that may never return, in a thread of its own. The thread stays if it does not.

    Raises:
        RuntimeError: it has not returned in time. Or whatever the function raises.
    """
    results: queue.Queue[T] = queue.Queue()
    errors: list[Exception] = []

    def call() -> None:
        try:
            results.put(function())
        except Exception as error:  # for the caller, whatever it is
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if results.empty():
        raise RuntimeError(f"no answer for {seconds:.0f} seconds")
    return results.get()


def _why(error: OSError, host: str) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name {host} does not resolve on this machine. Give an IP address, or correct MASTER_ADDR or DNS"
    if isinstance(error, ConnectionRefusedError):
        return (
            "that machine answers, but no process listens on that port. Has rank 0 been started, or has it ended with "
            "a message of its own? Do all machines have the same --master_addr and --master_port?"
        )
    if isinstance(error, TimeoutError):
        return "no answer. Is this the address of rank 0's machine, and does the firewall allow the port?"
    return (
        f"{error.strerror or error}. Is this the address of rank 0's machine, and can this machine reach its network?"
    )


def _register(store: dist.Store, rank: int, world_size: int, address: str) -> None:
    said = store.compare_set("world_size", "", str(world_size)).decode()
    if said != str(world_size):
        raise ValueError(
            f"rank {rank} has WORLD_SIZE {world_size}, and others at {address} have {said}: give all launchers the "
            f"same number of machines and of processes on each"
        )
    if store.add(f"rank-{rank}", 1) > 1:
        raise ValueError(
            f"two processes at {address} have rank {rank}: give each machine its own --node_rank, and each run its "
            f"own port"
        )
    if store.add("registered", 1) == world_size:
        store.set("all", "1")


def _who_is_missing(store: dist.Store, rank: int, world_size: int, address: str, seconds: float) -> str:
    missing = _first_missing(store, 0, world_size, MOST_NAMED)
    count = max(len(missing), world_size - store.add("registered", 0))
    names = ", ".join(map(str, missing)) + (", ..." if count > MOST_NAMED else "")
    return (
        f"rank {rank} waited {seconds:g} seconds (parallel.rendezvous_seconds) at {address} for {world_size} ranks, "
        f"and {count} are missing: {names}. Has the launcher of each machine been started, with the same "
        f"--master_addr, --master_port and number of machines? Has one of them ended with a message of its own?"
    )


def _first_missing(store: dist.Store, first: int, end: int, most: int) -> list[int]:
    """The first `most` of the ranks `first` to `end - 1` that have not registered, by halves: few questions to a store
    that all ranks ask at the same time."""
    if most <= 0 or store.check([f"rank-{rank}" for rank in range(first, end)]):
        return []
    if end - first == 1:
        return [first]
    middle = (first + end) // 2
    found = _first_missing(store, first, middle, most)
    return found + _first_missing(store, middle, end, most - len(found))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")[:300]
