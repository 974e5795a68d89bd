"""Asynchronous saving: training waits while its state is copied to host memory, and continues while it is written.

A save has two phases on each rank: `writing` its own file, and, when all ranks have done so, `committing`, which is
work of rank 0. The ranks agree on each change of phase between two steps, by numbers that the training loop adds to a
sum over ranks that it computes in any case. So no thread of a save communicates with other ranks.
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

from ingot.parallel.checkpoint.digest import digest
from ingot.parallel.checkpoint.files import write
from ingot.parallel.checkpoint.format import PARTIAL, CheckpointError, file_of, key_of, step_name
from ingot.parallel.checkpoint.manifest import make_manifest
from ingot.parallel.checkpoint.owners import Ownership, agree_on_owners
from ingot.parallel.checkpoint.run_folder import Retention, remove_leftovers
from ingot.parallel.mesh import sum_over_ranks
from ingot.parallel.tensor_shards import TensorShard

PAUSE = 15.0
"""If training computes on the CPU too: seconds for which the thread of a save sleeps for each second that it works."""
ATTEMPTS = 3
"""How many times a rank tries to write its file before the save fails."""


class Saver:
    """Writes the checkpoints of a run, one at a time. All ranks must make the same calls at the same points.

    Args:
        folder: the run's folder `checkpoints`.
        keep: how many checkpoints stay, with the newest; 0 keeps all.
        source: the checkpoint that the run was told to resume from. It stays in addition.
        before_waiting: called before this rank waits until all have written, as long as the slowest disk takes.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        source: Path | None = None,
        before_waiting: Callable[[], None] = lambda: None,
    ):
        self.folder, self._retention = folder, Retention(folder, keep, source)
        token = [secrets.token_hex(4)]
        dist.broadcast_object_list(token)
        self._token, self._before_waiting = token[0], before_waiting
        self._main = dist.get_rank() == 0
        self._ownership: Ownership | None = None  # the same in each save
        self._mine: set = set()  # keys of the shards that this rank writes
        self._buffers: dict[tuple, torch.Tensor] = {}
        self._save: _Save | None = None
        self._num_phases = 0
        self._leftovers_are_there = True

    @property
    def is_saving(self) -> bool:
        """Whether a save is in progress."""
        return self._save is not None

    def begin(self, shards: list[TensorShard], *, step: int, metadata: dict) -> float:
        """Copies this rank's part of the state and starts to write it. An earlier save is finished first.

        Args:
            shards: this rank's part. If several ranks hold the same part, one of them writes it.
            step: optimizer steps done.
            metadata: further keys of the manifest (cursor, configuration, layout), as JSON.

        Returns:
            Seconds that the copy took.

        Raises:
            CheckpointError: the earlier save could not be written.
        """
        self.finish()
        if self._ownership is None:
            self._ownership = agree_on_owners(shards)
            self._mine = {shard.key for shard in self._ownership.mine}
        mine = [shard for shard in shards if shard.key in self._mine]
        start = time.perf_counter()
        copies = [self._copy(shard) for shard in mine]
        if any(shard.tensor.is_cuda for shard in mine):
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        temporary = self.folder / f".{step_name(step)}.{self._token}{PARTIAL}"
        slow = not any(shard.tensor.is_cuda for shard in mine)
        self._save = _Save(temporary, self.folder / step_name(step), copies, step, metadata, PAUSE if slow else 0.0)
        self._start(self._save, self._write)
        return seconds

    def status(self) -> list[int]:
        """This rank's two numbers for the sum over ranks: its phase if it has ended, else 0, and whether it failed."""
        save = self._save
        return [0, 0] if save is None or save.thread.is_alive() else [save.number, save.error is not None]

    def advance(self, ended: int, failed: int) -> tuple[Path | None, str]:
        """Begins the next phase when all ranks have ended the present one. Each rank must call it.

        Sums from before the present phase are ignored, so they may be some time on their way.

        Args:
            ended, failed: the sums of `status` over all ranks.

        Returns:
            The checkpoint if it is now complete, and a message if something is tried again.

        Raises:
            CheckpointError: on all ranks, after several attempts. Nothing of this checkpoint is left then, and older
                ones are unchanged.
        """
        save = self._save
        if save is None or ended != dist.get_world_size() * save.number:
            return None, ""
        if failed:
            return None, self._try_again(save)
        if save.phase == "writing":
            names = self._owners.names
            sums = sum_over_ranks([save.digests[name] for name in names])
            files: list | None = [None] * dist.get_world_size() if self._main else None
            dist.gather_object(save.file, files)
            save.phase, save.digests = "committing", dict(zip(names, sums, strict=True))
            save.files = {file_of(rank): file for rank, file in enumerate(files or []) if file}
            self._start(save, self._commit)
            return None, ""
        self._save = None
        return save.final, ""

    def finish(self) -> Path | None:
        """Waits until no save is in progress. Returns the checkpoint that was completed, if there was one."""
        found = None
        if self._save is not None:
            self._before_waiting()
        while self._save is not None:
            self._save.hurry.set()
            self._save.thread.join()
            found = self.advance(*sum_over_ranks(self.status()))[0] or found
        return found

    @property
    def _owners(self) -> Ownership:
        assert self._ownership is not None, "begin comes first"
        return self._ownership

    def _try_again(self, save: "_Save") -> str:
        everywhere: list = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, str(save.error) if save.error else "")
        reason = next(text for text in everywhere if text)
        if self._main:
            remove_leftovers(self.folder)
        save.attempts += 1
        if save.attempts == ATTEMPTS:
            self._save = None
            raise CheckpointError(f"cannot write a checkpoint into {self.folder}: {reason}")
        dist.barrier()  # no rank writes before the files of the last attempt are removed
        save.phase = "writing"
        self._start(save, self._write)
        return f"the checkpoint of step {save.step} could not be written ({reason}); trying again"

    def _start(self, save: "_Save", work: Callable[["_Save"], None]) -> None:
        """Starts a phase. All ranks start the same ones, so they give it the same number."""
        self._num_phases += 1
        save.number = self._num_phases
        save.run(work)

    def _copy(self, shard: TensorShard) -> TensorShard:
        """Copies a shard to host memory. Buffers are kept for the next save: it is then twice as fast."""
        buffer = self._buffers.get(shard.key)
        if buffer is None or buffer.dtype != shard.tensor.dtype:
            buffer = torch.empty(shard.tensor.shape, dtype=shard.tensor.dtype, pin_memory=shard.tensor.is_cuda)
            self._buffers[shard.key] = buffer
        buffer.copy_(shard.tensor.detach(), non_blocking=True)
        return TensorShard(shard.name, shard.global_shape, shard.rectangle, buffer)

    def _write(self, save: "_Save") -> None:
        if self._main and self._leftovers_are_there:
            remove_leftovers(self.folder, save.temporary)
            self._leftovers_are_there = False
        save.temporary.mkdir(parents=True, exist_ok=True)
        file = save.temporary / file_of(dist.get_rank())
        save.digests = dict.fromkeys(self._owners.names, 0)
        if save.copies:
            tensors = {key_of(shard.name, shard.rectangle): shard.tensor for shard in save.copies}
            save.file = write(file, tensors, save.rest)
            for shard in save.copies:
                save.digests[shard.name] += digest(shard)
                save.rest()

    def _commit(self, save: "_Save") -> None:
        if self._main:
            manifest = make_manifest(self._owners.entries, save.digests, save.files, save.step, save.metadata)
            self._retention.commit(save.temporary, save.final, manifest)


class _Save:
    """A save in progress on this rank."""

    def __init__(
        self, temporary: Path, final: Path, copies: list[TensorShard], step: int, metadata: dict, pause: float
    ):
        self.temporary, self.final, self.copies = temporary, final, copies
        self.step, self.metadata = step, metadata
        self.phase, self.number, self.attempts = "writing", 0, 0
        self.file: dict | None = None  # size and sha256 of this rank's file
        self.digests: dict[str, int] = {}  # of this rank's part, then of the whole
        self.files: dict[str, dict] = {}  # on rank 0, of all ranks
        self.error: Exception | None = None
        self.thread: threading.Thread
        self.hurry = threading.Event()  # training waits: no pauses any more
        self._pause, self._worked = pause, 0.0

    def run(self, work: Callable[["_Save"], None]) -> None:
        self.error = None

        def target() -> None:
            with contextlib.suppress(OSError, AttributeError):  # on Linux, of this thread only: training has priority
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
            self._worked = time.thread_time()
            try:
                work(self)
            except Exception as error:
                self.error = error

        self.thread = threading.Thread(target=target, name="checkpoint")
        self.thread.start()

    def rest(self, others: float = 0.0) -> None:
        """Sleeps in proportion to the CPU time of this thread since the last call, so that training has the cores.

        Args:
            others: CPU seconds of other threads for this save.
        """
        self.hurry.wait(self._pause * (time.thread_time() - self._worked + others))
        self._worked = time.thread_time()


def save(
    folder: Path, shards: list[TensorShard], *, step: int, metadata: dict, keep: int, source: Path | None = None
) -> Path:
    """Writes the state of all ranks as one checkpoint, and waits for it. Arguments and errors as in `Saver`."""
    saver = Saver(folder, keep, source)
    saver.begin(shards, step=step, metadata=metadata)
    path = saver.finish()
    assert path is not None
    return path
