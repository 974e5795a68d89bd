"""The meeting of all ranks at MASTER_ADDR:MASTER_PORT, before there is a process group, bounded in time.

A store listens there: rank 0 holds it, or, under torchrun, the launcher of the first machine. The other ranks call it,
each signs in, and when all have, the process group connects. A collective may take half an hour; a meeting may not.
"""

import datetime
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

CONNECT_SECONDS = 10  # least that is left to the process group when the last rank came late
CLOSING_SECONDS = 2  # for gloo to give up by itself, with a reason
MOST_NAMED = 8


def meet(rank: int, world_size: int, seconds: float) -> dist.Store:
    """Returns the store of the meeting when all `world_size` ranks have signed in.

    Args:
        seconds: how long that may take in all.

    Raises:
        ValueError: MASTER_ADDR or MASTER_PORT is missing or wrong, rank 0 cannot listen there, nobody does, ranks have
            not come in time, or two processes say that they are the same rank. The message has the address, who was
            waited for, and what to look at.
    """
    host, port = _address()
    end = time.monotonic() + seconds
    store_of_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if rank == 0 and not store_of_launcher:
        store = _listen(host, port, seconds)
    else:
        holder = "the torchrun of the first machine" if store_of_launcher else "rank 0"
        store = _call(host, port, rank, holder, end, seconds)
    store = dist.PrefixStore(f"meeting-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    try:
        _sign_in(store, rank, world_size, f"{host}:{port}")
        pause = 0.01
        while not store.check(["all"]):
            if time.monotonic() > end:
                raise ValueError(_who_is_missing(store, rank, world_size, f"{host}:{port}", seconds))
            time.sleep(pause)
            pause = min(1.0, 1.5 * pause)
    except RuntimeError as error:
        raise ValueError(
            f"rank {rank} had signed in at {host}:{port}, and then the process that held the meeting went away; its "
            f"own message says why ({_first_line(error)})"
        ) from None
    return store


def connect(backend: str, rank: int, world_size: int, rendezvous_seconds: float, timeout: datetime.timedelta) -> None:
    """Meets, and makes the default process group, whose collectives may take `timeout` each.

    Raises:
        ValueError: as `meet`, or the ranks have met and could not connect to each other.
    """
    end = time.monotonic() + rendezvous_seconds
    store = meet(rank, world_size, rendezvous_seconds)
    left = datetime.timedelta(seconds=max(CONNECT_SECONDS, end - time.monotonic()))
    store.set_timeout(left)
    device = torch.cuda.current_device() if "nccl" in backend else None

    def join() -> None:
        if device is not None:
            torch.cuda.set_device(device)  # of this thread
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=rank, world_size=world_size, timeout=left
        )

    try:
        _within(left.total_seconds() + CLOSING_SECONDS, join)
    except RuntimeError as error:
        raise ValueError(
            f"rank {rank} on {socket.gethostname()} met all others at {':'.join(map(str, _address()))}, and then could "
            f"not connect to each of them directly ({_first_line(error)}). Mostly the wrong network interface was "
            f"chosen, or a firewall stands between: set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface "
            f"that joins the machines"
        ) from None
    store.set_timeout(timeout)
    dist.distributed_c10d._set_pg_timeout(timeout)


def _address() -> tuple[str, int]:
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"MASTER_ADDR is {host!r} and MASTER_PORT {port!r} in the environment, which ask for several processes: "
            f"expected the address of rank 0's machine and a port from 1 to 65535. Launchers set both"
        )
    return host, int(port)


def _listen(host: str, port: int, seconds: float) -> dist.Store:
    """Rank 0's part. It calls its own store by the local name: a wrong MASTER_ADDR is for the others to find out."""
    try:
        return dist.TCPStore("localhost", port, None, True, datetime.timedelta(seconds=seconds), wait_for_workers=False)
    except RuntimeError as error:
        reason = (
            "another process listens there: another run, or one that has not ended yet. Take another port "
            "(--master_port of either launcher), or end that process"
            if "EADDRINUSE" in str(error)
            else _first_line(error)
        )
        raise ValueError(f"rank 0 cannot hold the meeting at {host}:{port}: {reason}") from None


def _call(host: str, port: int, rank: int, holder: str, end: float, seconds: float) -> dist.Store:
    """Tries until somebody listens: names and machines may come up later than this process."""
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
            f"something listens at {host}:{port}, but it does not answer rank {rank} as {holder} would. Is it another "
            f"program's port? Take another one (--master_port of either launcher)"
        ) from None


def _within(seconds: float, function: Callable[[], T]) -> T:
    """Calls a function of torch that may wait without end, in a thread that is left to itself if it does.

    Raises:
        RuntimeError: it has not returned in time. Or whatever the function raises.
    """
    results: queue.Queue[tuple[T | None, Exception | None]] = queue.Queue()

    def call() -> None:
        try:
            results.put((function(), None))
        except Exception as error:  # for the caller, whatever it is
            results.put((None, error))

    threading.Thread(target=call, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise RuntimeError(f"no answer for {seconds:.0f} seconds") from None
    if error is not None:
        raise error
    return result


def _why(error: OSError, host: str) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name {host} does not resolve on this machine. Give an IP address, or mend MASTER_ADDR or DNS"
    if isinstance(error, ConnectionRefusedError):
        return (
            "that machine answers, but nobody listens on that port. Has rank 0 been started, and has it ended with a "
            "message of its own? Do all machines have the same --master_addr and --master_port?"
        )
    if isinstance(error, TimeoutError):
        return "no answer at all. Is the address that of rank 0's machine, and does a firewall let the port through?"
    return f"{error.strerror or error}. Is the address that of rank 0's machine, in a network that this one can reach?"


def _sign_in(store: dist.Store, rank: int, world_size: int, address: str) -> None:
    said = store.compare_set("world_size", "", str(world_size)).decode()
    if said != str(world_size):
        raise ValueError(
            f"rank {rank} was told of {world_size} processes, and others at {address} of {said}: the launchers "
            f"disagree about the number of machines or of processes on each"
        )
    if store.add(f"rank-{rank}", 1) > 1:
        raise ValueError(
            f"two processes at {address} say that they are rank {rank}: give each machine its own --node_rank, and "
            f"each run its own port"
        )
    if store.add("signed in", 1) == world_size:
        store.set("all", "1")


def _who_is_missing(store: dist.Store, rank: int, world_size: int, address: str, seconds: float) -> str:
    missing = [str(other) for other in range(world_size) if not store.check([f"rank-{other}"])]
    names = ", ".join(missing[:MOST_NAMED]) + (", ..." if len(missing) > MOST_NAMED else "")
    return (
        f"rank {rank} waited {seconds:g} seconds (parallel.rendezvous_seconds) at {address} for {world_size} ranks, "
        f"and {len(missing)} did not come: {names}. Is the launcher of each machine started, with the same "
        f"--master_addr, --master_port and number of machines, and has none of them ended with a message of its own?"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")[:300]
