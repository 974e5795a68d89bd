"""The learning curves of a fine-tuning run as a figure for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ingot.launcher.training.callbacks.metrics_file import read_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curves(metrics: Path) -> Figure:
    """Training loss and each score of the evaluations over the steps.

    Args:
        metrics: RUN/metrics.jsonl.
    """
    from matplotlib.figure import Figure

    records = list(read_records(metrics))
    train = [record for record in records if record["kind"] == "train"]
    evaluations = [record for record in records if record["kind"] == "eval"]
    last = evaluations[-1] if evaluations else {}
    names = [n for n, v in last.items() if isinstance(v, float) and n not in ("loss", "seconds", "time")]
    figure = Figure((5, 2.5 * (1 + len(names))), layout="constrained")
    first, *rest = figure.subplots(1 + len(names), 1, squeeze=False, sharex=True)[:, 0]
    first.plot([r["step"] for r in train], [r["loss"] for r in train], label="training", linewidth=0.8)
    first.plot([r["step"] for r in evaluations], [r["loss"] for r in evaluations], "o-", label="validation")
    first.set_ylabel("loss")
    first.legend()
    for axes, name in zip(rest, names, strict=True):
        axes.plot([r["step"] for r in evaluations], [r.get(name) for r in evaluations], "o-")
        axes.set_ylabel(name)
    figure.axes[-1].set_xlabel("step")
    return figure
