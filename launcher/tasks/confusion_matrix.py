"""A confusion matrix as a figure for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ingot.launcher.tasks.metrics import confusion
from ingot.launcher.tasks.task_kind import indices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NAMED = 30
"""Most labels with which the cells have names and numbers."""


def draw_confusion(predicted: Sequence[str], true: Sequence[str], labels: Sequence[str]) -> Figure:
    """Rows are true labels, columns predicted ones; the colour is the fraction of the row."""
    from matplotlib.figure import Figure

    counts = confusion(indices(predicted, labels), indices(true, labels), labels)
    side = 3 + 0.4 * min(len(labels), MAX_NAMED)
    figure = Figure((side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts / counts.sum(axis=1, keepdims=True).clip(min=1), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(labels) <= MAX_NAMED:
        axes.set_xticks(range(len(labels)), labels, rotation=90)
        axes.set_yticks(range(len(labels)), labels)
        for (row, column), count in np.ndenumerate(counts):
            dark = counts[row].sum() and count > counts[row].sum() / 2
            axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black", size=8)
    return figure
