"""Checkpoints that any layout can load: `format` (on disk), `grid`, `files`, `owners`, `saving` and `loading`.

`single_process` is for commands that check, compare and write checkpoints without ranks.
"""

from ingot.parallel.checkpoint.format import (
    FORMAT,
    VERSION,
    CheckpointError,
    CheckpointMismatch,
    committed,
    read_manifest,
    resolve,
    step_name,
)
from ingot.parallel.checkpoint.loading import ReadCounts, load, read_tensor
from ingot.parallel.checkpoint.saving import Saver, save

__all__ = [
    "FORMAT",
    "VERSION",
    "CheckpointError",
    "CheckpointMismatch",
    "ReadCounts",
    "Saver",
    "committed",
    "load",
    "read_manifest",
    "read_tensor",
    "resolve",
    "save",
    "step_name",
]
