"""Runs a function of a test on several real processes that communicate over gloo."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from ingot.launcher.runtime.exit_codes import exit_process


def run_ranks(function: Callable, world_size: int, *args: object, timeout: float = 240.0) -> list:
    """Calls `function(*args)` in `world_size` fresh processes whose environment says what torchrun's would.

    Returns:
        What each rank returned, in the order of ranks.

    Raises:
        AssertionError: a rank raised; its traceback is in the message. Or they did not end in `timeout` seconds.
    """
    context = process_context()
    results = context.SimpleQueue()
    port = free_port()
    processes = [
        context.Process(target=_rank, args=(function, rank, world_size, port, results, args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    returned: list = [None] * world_size
    problems = []
    try:
        end, running = time.monotonic() + timeout, True
        while running or not results.empty():
            assert time.monotonic() < end, f"ranks still run after {timeout} s"
            running = any(process.is_alive() for process in processes)
            if results.empty():  # a rank with a large result waits until it is read
                time.sleep(0.02)
                continue
            rank, value, error = results.get()
            returned[rank] = value
            if error:
                problems.append(f"rank {rank}:\n{error}")
        codes = [process.exitcode for process in processes]  # a rank that was killed has sent nothing
        assert not problems, "\n".join([*problems, f"exit codes {codes}"])
        assert codes == [0] * world_size, f"exit codes {codes}"
    finally:
        for process in processes:
            process.kill()
    return returned


@cache
def process_context() -> ForkServerContext | SpawnContext:
    """Starts fresh processes. Without CUDA they are forks of a process that has done the slow imports.

    (A process that uses CUDA cannot be forked.)
    """
    if torch.cuda.is_available():
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(
        ["deepspeed", "ingot.launcher.training.pretrain_run", "ingot.launcher.finetuning.finetune_run"]
    )
    return context


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rank(function: Callable, rank: int, world_size: int, port: int, results: Any, args: tuple) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        # DeepSpeed then builds with this environment's ninja, as Ingot does: another one would build everything again.
        PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    )
    try:
        results.put((rank, function(*args), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
        os._exit(1)  # other ranks may wait for this one in a collective, and a normal exit would wait too
    exit_process(0)
