"""The one training loop. Pretraining and fine-tuning differ in what they give it, not in the loop.

One turn: take the step's micro-batches, agree on the count of targets, forward and backward, update, report. Whatever
a step needs besides the weights follows from its number: the slots, the learning rate, the random streams.
"""

import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from ingot.data.loader.reader import Reader, StepBatch
from ingot.data.tasks.reader import TaskReader
from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.runtime import exit_codes
from ingot.launcher.training.bad_data import DamageWatch, Unreadable
from ingot.launcher.training.batch_ramp import size_of
from ingot.launcher.training.logger import Metrics
from ingot.model.costs.flops import peak_flops
from ingot.parallel import checkpoint
from ingot.parallel.engines.engine import Batch, Engine
from ingot.parallel.mesh import sum_over_ranks
from ingot.parallel.optimizer import learning_rate_at


@dataclass
class Progress:
    """How far a run is. With the weights and the configuration, this is all there is to know."""

    step: int = 0
    cursor: int = 0  # slots of the data order that finished steps have consumed
    tokens: int = 0
    substituted: int = 0  # sequences that stood in for damaged ones
    quarantine: list[tuple[str, int]] = field(
        default_factory=list
    )  # what of the data is not read; data/corpus/quarantine.py


class Trainer:
    """Trains `engine` on `reader` until `config.run.steps`.

    Args:
        evaluate: called between steps on each rank; returns the scores of an `eval` line. None for no evaluation.
        watch: what to do about damaged data.
        about: what checkpoints shall say besides the progress: configuration, layout, what the data are.
        flops_per_token: of forward and backward, for the tflops and mfu of a train line.
        enough: asked after each evaluation, on each rank: whether the run shall end here.
        after_step: called with the number of each step that is done, on each rank.
    """

    def __init__(
        self,
        config: TrainConfig | FinetuneConfig,
        engine: Engine,
        reader: Reader | TaskReader,
        metrics: Metrics,
        folder: Path,
        *,
        progress: Progress,
        evaluate: Callable[[], dict] | None,
        watch: DamageWatch,
        about: dict,
        flops_per_token: float,
        enough: Callable[[dict], bool] = lambda scores: False,
        after_step: Callable[[int], object] = lambda step: None,
    ):
        self.config, self.engine, self.reader, self.metrics, self.folder = config, engine, reader, metrics, folder
        self.progress, self.evaluate, self.watch, self.about = progress, evaluate, watch, about
        self.mesh = engine.mesh
        self.flops_per_token, self.enough, self.after_step = flops_per_token, enough, after_step
        dtype = torch.bfloat16 if config.parallel.precision == "bf16" else torch.float32
        self.peak_flops = (
            peak_flops(torch.cuda.get_device_name(self.mesh.device), dtype) if self.mesh.device.type == "cuda" else None
        )
        self.saver = checkpoint.Saver(folder / "checkpoints", config.run.keep_checkpoints)
        self._saving: dict = {}  # what is known of the save under way
        self._stop_requested = False
        self._read_again = False
        self._saved_step = progress.step
        self._evaluated_step = -1
        self.scores: dict = {}  # of the last evaluation

    def run(self) -> int:
        """Trains to the end, or to a request to stop. Returns the exit code.

        Raises:
            BadInput: data are damaged and data.strict is set, or a checkpoint cannot be written.
        """
        try:
            return self._run()
        except Unreadable as problem:  # between two steps, on all ranks
            self.save()
            self._finish_saving()
            if problem.code == exit_codes.BAD_INPUT:
                raise exit_codes.BadInput(str(problem)) from None
            self.metrics.event(self.progress.step, str(problem))
            return problem.code
        except checkpoint.CheckpointError as problem:  # raised on all ranks alike; older checkpoints are as they were
            raise exit_codes.BadInput(str(problem)) from None

    def _run(self) -> int:
        run, progress = self.config.run, self.progress
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._request_stop)
        timer = _Timer()
        self.engine.module.train()
        for batch in self._batches():
            data_seconds = timer.lap()
            record, stop = self._step(batch)
            timer.add(data_seconds, record["tokens"])
            self.metrics.advance()
            if not math.isfinite(record["loss"]) or not math.isfinite(record["grad_norm"]):
                self.metrics.event(
                    progress.step, "loss or gradient is not finite; nothing is saved", loss=record["loss"]
                )
                self._finish_saving()  # of an earlier step
                return exit_codes.GIVE_UP
            if progress.step % run.log_every == 0 or progress.step == run.steps or stop:
                self._report(record, timer)
            enough = False
            if self.evaluate and run.eval_every and progress.step % run.eval_every == 0:
                self._evaluate()
                enough = self.enough(self.scores)
            if run.save_every and progress.step % run.save_every == 0:
                self.save()
            if stop:
                self.save()
                self._finish_saving()
                self.metrics.event(progress.step, "stopped on request; start again to go on")
                return exit_codes.REQUEUE
            if enough:
                break
            timer.lap()  # what evaluating and saving took is no part of a step
        self.save()
        if self.evaluate and self._evaluated_step != progress.step:
            self._evaluate()
            self.enough(self.scores)
        self._finish_saving()
        return exit_codes.DONE

    def _batches(self) -> Iterator[StepBatch]:
        """The reader's steps, of the sizes that the ramp of the batch gives them.

        What it has read ahead is read again when ranks have agreed on another quarantine.
        """
        progress, last = self.progress, self.config.run.steps
        while progress.step < last:
            self._read_again = False
            size, end = size_of(self.config.batch, progress.step + 1)
            stop = progress.cursor + (min(last, end or last) - progress.step) * size
            with closing(self.reader.steps(progress.cursor, stop, size)) as batches:
                for batch in batches:
                    yield batch
                    if self._read_again:
                        break

    def save(self) -> None:
        """Begins a checkpoint of the state as it is; the training waits for a copy of it alone."""
        progress = self.progress
        if self._saved_step == progress.step:
            return
        self._finish_saving()
        start = time.perf_counter()
        self.saver.begin(
            self.engine.shards(),
            step=progress.step,
            about={**{k: v for k, v in asdict(progress).items() if k != "step"}, **self.about},
        )
        self._saved_step = progress.step
        self._saving = {"step": progress.step, "seconds": round(time.perf_counter() - start, 3), "start": start}

    def _finish_saving(self) -> None:
        self._tell_saved(self.saver.finish())

    def _tell_saved(self, path: Path | None) -> None:
        if path is not None:
            written = round(time.perf_counter() - self._saving.pop("start"), 3)
            self.metrics.checkpoint({**self._saving, "path": str(path), "written_seconds": written})

    def _step(self, batch: StepBatch) -> tuple[dict, bool]:
        progress = self.progress
        # One collective on integers says all that ranks must agree on.
        counts = [batch.num_targets, batch.num_tokens, batch.fingerprint, batch.substituted]
        counts = [count * (self.mesh.tensor_rank == 0) for count in counts]  # tensor ranks read the same data
        num_targets, num_tokens, fingerprint, substituted, stop, ended, failed, *damages = sum_over_ranks(
            [*counts, self._stop_requested, *self.saver.state(), *self.watch.counts(batch.error)]
        )
        step = progress.step + 1
        path, trouble = self.saver.settle(ended, failed)
        self._tell_saved(path)
        if trouble:
            self.metrics.event(progress.step, trouble)
        self._read_again = self.watch.settle(*damages, batch.error, step)
        self.watch.spend(substituted, batch.cursor - progress.cursor)
        torch.manual_seed((self.config.run.seed * 1_000_003 + step) * 65_537 + self.mesh.rank)  # dropout
        extra = asdict(self.config.loss)  # of training alone
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        for number, micro in enumerate(batch.micro_batches, start=1):
            last = number == len(batch.micro_batches)
            inputs = to_device(micro, self.mesh.device)
            if "pair_labels" in micro:  # each sequence is one pair: the loss becomes a sum of two means, as in BERT
                inputs["pair_weight"] = torch.tensor(num_targets / size_of(self.config.batch, step)[0])
            inputs |= {name: weight for name, weight in extra.items() if weight}
            loss_sum += self.engine.accumulate(inputs, max(1, num_targets), last)
        learning_rate = self._learning_rate(step)
        grad_norm = self.engine.step(learning_rate, step)
        self.after_step(step)
        torch.distributed.all_reduce(loss_sum, group=self.mesh.data_group)
        progress.step, progress.cursor, progress.tokens = step, batch.cursor, progress.tokens + num_tokens
        progress.substituted += substituted
        progress.quarantine = sorted(self.watch.names)
        record = {
            "step": step,
            "loss": float(loss_sum) / max(1, num_targets),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "tokens": num_tokens,
            "batch_fingerprint": f"{fingerprint:016x}",
        }
        return record, bool(stop)

    def _learning_rate(self, step: int) -> float:
        settings = self.config.optimizer
        return learning_rate_at(
            step,
            peak=settings.learning_rate,
            schedule=settings.schedule,
            warmup_steps=settings.warmup_steps,
            lr_decay_steps=settings.lr_decay_steps or self.config.run.steps,
            min_lr_ratio=settings.min_lr_ratio,
            lr_decay_ratio=settings.lr_decay_ratio,
        )

    def _report(self, record: dict, timer: "_Timer") -> None:
        step_seconds, data_seconds, tokens_per_second = timer.means()
        flops = tokens_per_second * self.flops_per_token / self.mesh.world_size
        self.metrics.train(
            {
                "step": record["step"],
                "loss": record["loss"],
                "grad_norm": record["grad_norm"],
                "learning_rate": record["learning_rate"],
                "tokens": self.progress.tokens,
                "samples": self.progress.cursor,
                "batch_fingerprint": record["batch_fingerprint"],
                "substituted": self.progress.substituted,
                "step_seconds": round(step_seconds, 6),
                "data_seconds": round(data_seconds, 6),
                "tokens_per_second": round(tokens_per_second, 1),
                "tflops_per_device": round(flops / 1e12, 6),
                "mfu": round(flops / self.peak_flops, 4) if self.peak_flops else None,
                "peak_memory_bytes": _peak_memory(self.mesh.device),
            }
        )

    def _evaluate(self) -> None:
        start = time.perf_counter()
        self.engine.module.eval()
        scores = self.scores = self.evaluate()
        self.engine.module.train()
        seconds = round(time.perf_counter() - start, 3)
        self._evaluated_step = self.progress.step
        self.metrics.evaluation({"step": self.progress.step, **scores, "seconds": seconds})

    def _request_stop(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self._stop_requested:
            raise KeyboardInterrupt  # asked twice: at once, then
        self._stop_requested = True


def to_device(micro: dict[str, np.ndarray], device: torch.device) -> Batch:
    """A reader's micro-batch as the model's keyword arguments."""
    names = {
        "input_ids": "input_ids_BT",
        "labels": "labels_BT",
        "positions": "positions_BT",
        "cu_seqlens": "cu_seqlens",
        "token_types": "token_types_BT",
        "pair_labels": "pair_labels_B",
        "targets": "labels",
    }
    batch = {names[key]: torch.from_numpy(array) for key, array in micro.items()}
    if device.type == "cuda":  # from pinned memory a copy does not hold up the host
        batch = {key: tensor.pin_memory() for key, tensor in batch.items()}
    return {key: tensor.to(device, non_blocking=True) for key, tensor in batch.items()}


class _Timer:
    """Means over the steps since the last report. A step's time counts from the end of the one before it."""

    def __init__(self):
        self._last = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self._steps, self._seconds, self._data, self._tokens = 0, 0.0, 0.0, 0

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

    def add(self, data_seconds: float, tokens: int) -> None:
        self._steps += 1
        self._data += data_seconds
        self._seconds += data_seconds + self.lap()
        self._tokens += tokens

    def means(self) -> tuple[float, float, float]:
        """Seconds a step, of these seconds waiting for data, tokens a second; and begins anew."""
        result = self._seconds / self._steps, self._data / self._steps, self._tokens / self._seconds
        self._clear()
        return result


def _peak_memory(device: torch.device) -> int:
    """Peak bytes so far: allocated on a CUDA device, resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
