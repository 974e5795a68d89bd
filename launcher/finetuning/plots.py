"""Pictures of a fine-tuning run for TensorBoard: a confusion matrix and learning curves."""

import json
from pathlib import Path

import numpy as np

from ingot.launcher.finetuning.metrics import confusion

MOST = 30
"""Labels up to which the squares of a confusion matrix have names and numbers."""


def draw_confusion(predicted: list[str], true: list[str], labels: list[str]):
    """Rows are true labels, columns predicted ones; a figure of matplotlib."""
    from matplotlib.figure import Figure

    counts = confusion([labels.index(p) for p in predicted], [labels.index(t) for t in true], labels)
    side = 3 + 0.4 * min(len(labels), MOST)
    figure = Figure((side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts / counts.sum(axis=1, keepdims=True).clip(min=1), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(labels) <= MOST:
        axes.set_xticks(range(len(labels)), labels, rotation=90)
        axes.set_yticks(range(len(labels)), labels)
        for (row, column), count in np.ndenumerate(counts):
            dark = counts[row].sum() and count > counts[row].sum() / 2
            axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black", size=8)
    return figure


def draw_curves(metrics: Path):
    """Training loss, and each score of the evaluations, over the steps; a figure of matplotlib."""
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    train = [record for record in records if record["kind"] == "train"]
    evaluations = [record for record in records if record["kind"] == "eval"]
    names = [n for n, v in evaluations[-1].items() if isinstance(v, float) and n not in ("loss", "seconds", "time")]
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
