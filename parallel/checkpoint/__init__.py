"""Checkpoints that any layout can load: `format` (on disk), `manifest`, `grid`, `files`, `owners`, `saving`, `loading`.

`run_folder` has the checkpoints of one run: which are there, which stay, and which are set aside.
`single_process` is for commands that check, compare and write checkpoints without ranks.
"""

from ingot.parallel.checkpoint.format import FORMAT, VERSION, CheckpointError, CheckpointMismatch, step_name
from ingot.parallel.checkpoint.loading import ReadCounts, load, read_manifest_on_all_ranks, read_tensor
from ingot.parallel.checkpoint.manifest import read_manifest
from ingot.parallel.checkpoint.run_folder import committed, open_newest, resolve
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
    "open_newest",
    "read_manifest",
    "read_manifest_on_all_ranks",
    "read_tensor",
    "resolve",
    "save",
    "step_name",
]
