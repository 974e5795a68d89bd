"""Saving beside the training: it waits while its state is copied to host memory, and goes on while that is written.

A save goes through two phases on every rank: `writing` its own file, and, once all have done so, `committing`, which is
rank 0's work. The ranks agree on each change of phase between two steps, with numbers that the loop sums over them
anyway, so that no thread ever talks to other ranks.
"""

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from ingot.parallel.catalog import Shard
from ingot.parallel.checkpoint.digest import digest
from ingot.parallel.checkpoint.files import write
from ingot.parallel.checkpoint.format import (
    PARTIAL,
    CheckpointError,
    commit,
    drop_leftovers,
    file_of,
    key_of,
    make_manifest,
    step_name,
)
from ingot.parallel.checkpoint.owners import Ownership, agree
from ingot.parallel.mesh import sum_over_ranks

PAUSE = 15.0
"""Where training computes on the CPU too: seconds for which a save rests for each second that it works."""
ATTEMPTS = 3
"""How often a part is written before a save is given up."""


class Saver:
    """Saves of one run, one at a time. Each rank has one, and makes each call at the same point as the others.

    Args:
        folder: the run's `checkpoints` folder.
        keep: how many checkpoints stay, the newest included; 0 keeps all.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        token = [secrets.token_hex(4)]
        dist.broadcast_object_list(token)
        self._token = token[0]
        self._main = dist.get_rank() == 0
        self._ownership: Ownership | None = None  # the same in each save
        self._mine: set = set()  # keys of what this rank writes
        self._buffers: dict[tuple, torch.Tensor] = {}
        self._save: _Save | None = None
        self._leftovers_are_there = True

    @property
    def busy(self) -> bool:
        return self._save is not None

    def begin(self, shards: list[Shard], *, step: int, about: dict) -> float:
        """Copies this rank's part of the state and lets it be written. An earlier save is finished first.

        Args:
            shards: this rank's part. What several ranks hold is written by one of them.
            step: optimizer steps done.
            about: what else the manifest shall say (cursor, configuration, layout): plain JSON.

        Returns:
            Seconds for which the copy held up this rank.

        Raises:
            CheckpointError: the earlier save could not be written.
        """
        self.finish()
        if self._ownership is None:
            self._ownership = agree(shards)
            self._mine = {shard.key for shard in self._ownership.mine}
        mine = [shard for shard in shards if shard.key in self._mine]
        start = time.perf_counter()
        copies = [self._copy(shard) for shard in mine]
        if any(shard.tensor.is_cuda for shard in mine):
            torch.cuda.synchronize()
        stalled = time.perf_counter() - start
        temporary = self.folder / f".{step_name(step)}.{self._token}{PARTIAL}"
        slow = not any(shard.tensor.is_cuda for shard in mine)
        self._save = _Save(temporary, self.folder / step_name(step), copies, step, about, PAUSE if slow else 0.0)
        self._save.run(self._write)
        return stalled

    def state(self) -> list[int]:
        """This rank's numbers for the sum over ranks that goes to `settle`."""
        save = self._save
        return [0, 0] if save is None or save.thread.is_alive() else [1, save.error is not None]

    def settle(self, ended: int, failed: int) -> tuple[Path | None, str]:
        """Goes on to the next phase once all ranks have ended this one. Each rank must call it, with the sums of
        `state`.

        Returns:
            The checkpoint, if it is there now, and a word on what had to be tried again.

        Raises:
            CheckpointError: on each rank alike, after several attempts. Nothing of this checkpoint is left then, and
                older ones are as they were.
        """
        save = self._save
        if save is None or ended < dist.get_world_size():
            return None, ""
        if failed:
            return None, self._try_again(save)
        if save.phase == "writing":
            names = self._ownership.names
            sums = sum_over_ranks([save.digests[name] for name in names])
            sizes: list | None = [None] * dist.get_world_size() if self._main else None
            dist.gather_object(save.bytes, sizes)
            save.phase, save.digests = "committing", dict(zip(names, sums, strict=True))
            save.files = {file_of(rank): size for rank, size in enumerate(sizes or []) if size}
            save.run(self._commit)
            return None, ""
        self._save = None
        return save.final, ""

    def finish(self) -> Path | None:
        """Waits until nothing is under way. Returns the checkpoint that this finished, if there was one."""
        found = None
        while self.busy:
            self._save.hurry.set()
            self._save.thread.join()
            found = self.settle(*sum_over_ranks(self.state()))[0] or found
        return found

    def _try_again(self, save: "_Save") -> str:
        problem = [str(save.error) if save.error else ""]
        everywhere: list = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, problem[0])
        said = next(text for text in everywhere if text)
        if self._main:
            drop_leftovers(self.folder)
        save.attempts += 1
        if save.attempts == ATTEMPTS:
            self._save = None
            raise CheckpointError(f"cannot write a checkpoint into {self.folder}: {said}")
        dist.barrier()  # no one writes before the remains of the last attempt are away
        save.phase = "writing"
        save.run(self._write)
        return f"the checkpoint of step {save.step} could not be written ({said}); trying again"

    def _copy(self, shard: Shard) -> Shard:
        """Buffers are kept for the next save: memory that is there already is filled twice as fast."""
        buffer = self._buffers.get(shard.key)
        if buffer is None or buffer.dtype != shard.tensor.dtype:
            buffer = torch.empty(shard.tensor.shape, dtype=shard.tensor.dtype, pin_memory=shard.tensor.is_cuda)
            self._buffers[shard.key] = buffer
        buffer.copy_(shard.tensor.detach(), non_blocking=True)
        return Shard(shard.name, shard.global_shape, shard.rectangle, buffer)

    def _write(self, save: "_Save") -> None:
        if self._main and self._leftovers_are_there:
            drop_leftovers(self.folder, save.temporary)
            self._leftovers_are_there = False
        save.temporary.mkdir(parents=True, exist_ok=True)
        file = save.temporary / file_of(dist.get_rank())
        save.digests = dict.fromkeys(self._ownership.names, 0)
        if save.copies:
            tensors = {key_of(shard.name, shard.rectangle): shard.tensor for shard in save.copies}
            save.bytes = write(file, tensors, save.rest)
            for shard in save.copies:
                save.digests[shard.name] += digest(shard)
                save.rest()

    def _commit(self, save: "_Save") -> None:
        if self._main:
            manifest = make_manifest(self._ownership.entries, save.digests, save.files, save.step, save.about)
            commit(save.temporary, save.final, manifest, self.keep)


class _Save:
    """One save under way on this rank."""

    def __init__(self, temporary: Path, final: Path, copies: list[Shard], step: int, about: dict, pause: float):
        self.temporary, self.final, self.copies, self.step, self.about = temporary, final, copies, step, about
        self.phase, self.attempts = "writing", 0
        self.bytes = 0  # of this rank's file
        self.digests: dict[str, int] = {}  # of this rank's part, then of the whole
        self.files: dict[str, int] = {}  # on rank 0, of all ranks
        self.error: Exception | None = None
        self.thread: threading.Thread
        self.hurry = threading.Event()  # someone waits for it
        self._pause, self._worked = pause, 0.0

    def run(self, work: Callable[["_Save"], None]) -> None:
        self.error = None

        def target() -> None:
            with contextlib.suppress(OSError, AttributeError):  # of a thread alone, on Linux; training goes first
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
            self._worked = time.thread_time()
            try:
                work(self)
            except Exception as error:
                self.error = error

        self.thread = threading.Thread(target=target, name="checkpoint")
        self.thread.start()

    def rest(self) -> None:
        """Leaves the cores to the training, in proportion to what this thread has used of them since the last call."""
        self.hurry.wait(self._pause * (time.thread_time() - self._worked))
        self._worked = time.thread_time()


def save(folder: Path, shards: list[Shard], *, step: int, about: dict, keep: int) -> Path:
    """Writes the state of all ranks as one checkpoint and waits for it. Arguments and errors as in `Saver`."""
    saver = Saver(folder, keep)
    saver.begin(shards, step=step, about=about)
    return saver.finish()
