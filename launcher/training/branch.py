"""The branch of a run: what a start leaves behind of the checkpoints in the run's folder.

A run that is told to resume from an older checkpoint, or from one of another run, leaves a branch. Its checkpoints get
another name, so that the next start with run.resume auto goes on from the new branch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.training.resume import Resumed
from ingot.launcher.training.setup import on_main_rank, run_folder
from ingot.parallel.checkpoint import CheckpointError, read_manifest
from ingot.parallel.checkpoint.format import step_of
from ingot.parallel.checkpoint.run_folder import SOURCE, begin_at, is_ancestor, new_branch, set_aside
from ingot.parallel.mesh import Mesh


@dataclass(frozen=True)
class Branch:
    """The branch that a run continues or begins. `lineage` and `notes` are those of rank 0, which writes them.

    Attributes:
        is_new: whether intact checkpoints of another branch were left behind; the same on all ranks.
        source: the checkpoint that the run was told to resume from, which stays; None with run.resume auto.
    """

    lineage: Sequence[dict]
    notes: Sequence[str]
    is_new: bool
    source: Path | None


def choose_branch(config: TrainConfig | FinetuneConfig, mesh: Mesh, resumed: Resumed) -> Branch:
    """Sets aside what the run leaves behind in its folder. Each rank must call it, before anything is saved.

    Raises:
        BadInput: on all ranks, if the folder cannot be written.
    """
    folder, step = run_folder(config) / "checkpoints", resumed.progress.step

    def is_own(path: Path) -> bool:
        return path.resolve().parent == folder.resolve() and step_of(path) is not None

    is_outside = resumed.source is not None and not is_own(resumed.source)
    is_told = config.run.resume not in ("auto", "never") or is_outside
    source = resumed.source if is_told else None

    def belongs(path: Path) -> bool:
        if not is_told or path.resolve() == (source and source.resolve()):
            return True
        try:
            lineage = read_manifest(path).get("lineage", [])
        except CheckpointError:
            return True  # an older one that is damaged harms nobody
        return (not is_outside or bool(lineage)) and is_ancestor(lineage, step_of(path) or 0, resumed.lineage)

    def leave() -> list[Path]:
        if is_outside and source is not None:
            begin_at(folder, source, step)  # before the others are renamed: the run may be killed at any time
        elif is_told:
            (folder / SOURCE).unlink(missing_ok=True)  # of an earlier start
        return set_aside(folder, step, resumed.damaged, belongs)

    renamed = on_main_rank(mesh, leave) or []
    is_new = [any(".abandoned-" in path.name for path in renamed)]
    dist.broadcast_object_list(is_new)
    notes = [f"{path.name.partition('.')[0]} was set aside as {path.name}" for path in renamed]
    lineage = list(resumed.lineage)
    if not lineage or is_new[0] or is_outside:
        lineage = new_branch(lineage, step, source)
    return Branch(lineage, notes, is_new[0], source)
