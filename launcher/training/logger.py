"""What a run says about itself: metrics.jsonl, TensorBoard, log.txt and a progress bar, all on rank 0."""

import json
import logging
import math
import sys
import time
from pathlib import Path

from tqdm import tqdm

TENSORBOARD_NAMES = {
    "loss": "loss",
    "grad_norm": "optimizer/grad_norm",
    "learning_rate": "optimizer/learning_rate",
    "tokens_per_second": "speed/tokens_per_second",
    "step_seconds": "speed/step_seconds",
    "data_seconds": "speed/data_seconds",
    "substituted": "data/substituted",
    "tflops_per_device": "speed/tflops_per_device",
    "mfu": "speed/mfu",
    "perplexity": "perplexity",
    "bits_per_byte": "bits_per_byte",
    "accuracy": "accuracy",
}


class Metrics:
    """Writes records. On other ranks than 0 every method does nothing, so callers need not ask.

    Args:
        folder: the run's folder; None for a rank that only computes.
        steps: optimizer steps of the run, for the progress bar.
        step: steps already done.
    """

    def __init__(self, folder: Path | None, *, steps: int, step: int = 0):
        self.folder = folder
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "metrics.jsonl").open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._log = _logger(folder / "log.txt")
        # A bar on a terminal only; a log file gets one line for each record instead.
        self._bar = tqdm(total=steps, initial=step, unit="step", disable=None, dynamic_ncols=True)

    def advance(self) -> None:
        if self.folder is not None:
            self._bar.update(1)

    def train(self, record: dict) -> None:
        """A `train` line; keys as DESIGN's contract names them."""
        self._record("train", record)
        if self.folder is not None:
            text = (
                f"step {record['step']}  loss {record['loss']:.4f}  lr {record['learning_rate']:.2e}  "
                f"norm {record['grad_norm']:.2f}  {record['tokens_per_second']:,.0f} tokens/s"
            )
            self._bar.set_postfix_str(
                f"loss {record['loss']:.3f} {record['tokens_per_second']:,.0f} tok/s", refresh=False
            )
            self._say(text, on_terminal=bool(self._bar.disable))

    def evaluation(self, record: dict) -> None:
        """An `eval` line: step, loss and scores."""
        self._record("eval", record)
        if self.folder is not None:
            scores = "  ".join(f"{k} {v:.4f}" for k, v in record.items() if isinstance(v, float) and k != "seconds")
            self._say(f"step {record['step']}  validation: {scores}")

    def checkpoint(self, record: dict) -> None:
        self._record("checkpoint", record)
        if self.folder is not None:
            self._say(f"step {record['step']}  checkpoint {record['path']}, training waited {record['seconds']:.2f} s")

    def event(self, step: int, event: str, **more) -> None:
        """Something worth knowing that is no measurement: start, resume, stop, trouble."""
        self._record("event", {"step": step, "event": event, **more})
        if self.folder is not None:
            self._say(f"step {step}  {event}" + "".join(f"  {k} {v}" for k, v in more.items()))

    def say(self, text: str) -> None:
        if self.folder is not None:
            self._say(text)

    def figure(self, name: str, figure, step: int) -> None:
        """A picture in TensorBoard, of matplotlib."""
        if self.folder is not None:
            self._board.add_figure(name, figure, step)

    def close(self) -> None:
        if self.folder is not None:
            self._bar.close()
            self._board.close()
            self._file.close()

    def _record(self, kind: str, record: dict) -> None:
        if self.folder is None:
            return
        # NaN and infinity are no JSON.
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps({"kind": kind, **clean, "time": round(time.time(), 3)}) + "\n")
        for name, value in record.items():
            if value is not None and (name in TENSORBOARD_NAMES or (kind == "eval" and isinstance(value, float))):
                self._board.add_scalar(f"{kind}/{TENSORBOARD_NAMES.get(name, name)}", value, record["step"])
        self._board.flush()

    def _say(self, text: str, on_terminal: bool = True) -> None:
        self._log.info(text)
        if on_terminal:
            tqdm.write(text, file=sys.stderr)


def _logger(path: Path) -> logging.Logger:
    logger = logging.getLogger(f"ingot.{path}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    return logger
