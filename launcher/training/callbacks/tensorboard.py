"""TensorBoard: curves of the metrics, and figures."""

from pathlib import Path
from typing import Any

from ingot.launcher.training.callbacks.callback import Callback, Kind

NAMES = {
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
"""The metrics with a curve, and the names of the curves. Each score of an evaluation has a curve too."""


class TensorBoard(Callback):
    """Writes to `folder`/tensorboard. It removes points after `step`, since a resumed run repeats these steps."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def on_log(self, kind: Kind, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if value is not None and (name in NAMES or (kind == "eval" and isinstance(value, float))):
                self._writer.add_scalar(f"{kind}/{NAMES.get(name, name)}", value, record["step"])
        self._writer.flush()

    def on_figure(self, name: str, figure: Any, step: int) -> None:
        self._writer.add_figure(name, figure, step)

    def close(self) -> None:
        self._writer.close()
