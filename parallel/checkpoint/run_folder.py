"""The checkpoints of one run: publishing the newest one, removing old ones, and setting aside what a run left behind.

A run removes only checkpoints that it has found intact or has written, and never the one that it was told to resume
from. Damaged ones, and those of a branch that a run has left, get another name and are never removed.
"""

import json
import secrets
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from ingot.durable_files import sync_folder, write_atomically
from ingot.parallel.checkpoint.format import PARTIAL, CheckpointError, step_of
from ingot.parallel.checkpoint.manifest import MANIFEST, read_manifest, write_manifest
from ingot.safe_files import parse_json, read_bytes

LATEST, SOURCE = "LATEST", "SOURCE.json"
"""SOURCE.json is there while a run that began at a checkpoint from elsewhere has none of its own: its step and path."""


def committed(folder: Path) -> list[Path]:
    """The folders of checkpoints in a run's folder `checkpoints`, newest first. They are not checked."""
    found = [(step, path) for path in folder.glob("step-*") if (step := step_of(path)) is not None and path.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


def to_resume(folder: Path) -> list[Path]:
    """The checkpoints from which a run can go on, newest first: its own ones, and the one from elsewhere that it began
    at, as long as it has written none since."""
    found = [(step_of(path) or 0, False, path) for path in committed(folder)]
    try:
        source = parse_json(read_bytes(folder / SOURCE, max_bytes=1 << 16), SOURCE)
        if isinstance(source, dict):
            found.append((int(source["step"]), True, Path(source["path"])))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none
    return [path for _, _, path in sorted(found, reverse=True)]


def begin_at(folder: Path, source: Path, step: int) -> None:
    """Notes that a run begins at a checkpoint that is not among its own."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SOURCE, json.dumps({"step": step, "path": str(source.resolve())}) + "\n")


def warn(text: str) -> None:
    """Prints a line to standard error, once."""
    if text not in _SAID:
        _SAID.add(text)
        print(text, file=sys.stderr)


_SAID: set[str] = set()


def open_newest(path: Path, skipped: Callable[[str], object] = warn) -> tuple[Path, dict]:
    """The checkpoint folder for a user's path, and its manifest: the path itself, or the newest intact checkpoint of a
    run.

    Args:
        skipped: a function that is called with a line about each newer checkpoint that is damaged.

    Raises:
        CheckpointError: there is none, or the one that is named is damaged.
    """
    if (path / MANIFEST).exists():
        return path, read_manifest(path)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    errors = []
    for candidate in committed(folder):
        try:
            manifest = read_manifest(candidate)
        except CheckpointError as error:
            errors.append(str(error))
            continue
        for text in errors:
            skipped(f"skipped: {text}; using {candidate.name}")
        return candidate, manifest
    if errors:
        raise CheckpointError("; ".join(errors))
    aside = ", ".join(each.name for each in left_behind(folder) if not each.name.startswith("."))
    raise CheckpointError(
        f"{path} holds no checkpoint: neither {MANIFEST} nor checkpoints/step-*"
        + (f"; what was set aside can be named: {aside} in {folder}" if aside else "")
    )


def resolve(path: Path, skipped: Callable[[str], object] = warn) -> Path:
    """As `open_newest`, for those who read the manifest later: one that is named is not read here."""
    return path if (path / MANIFEST).exists() else open_newest(path, skipped)[0]


def publish(temporary: Path, final: Path, manifest: dict) -> None:
    """Writes the manifest and gives the folder its final name.

    The order is such that a crash at any point leaves a whole checkpoint or none.
    """
    write_manifest(temporary, manifest)
    sync_folder(temporary)
    if final.exists():  # a damaged checkpoint, whose step this run has now reached again
        other = _rename(final, "damaged")
        warn(f"{final} is damaged and was kept as {other.name}")
    temporary.rename(final)
    sync_folder(final.parent)


class Retention:
    """Which checkpoints of a run stay.

    Args:
        folder: the run's folder `checkpoints`.
        keep: how many stay, with the newest; 0 keeps all.
        source: the checkpoint that the run was told to resume from. It stays in addition.
    """

    def __init__(self, folder: Path, keep: int, source: Path | None = None):
        if keep < 0:
            raise ValueError(f"keep must be 0 (all) or more, not {keep}")
        self.folder, self.keep = folder, keep
        self._source = None if source is None else source.resolve()
        self._intact: set[Path] | None = None

    def commit(self, temporary: Path, final: Path, manifest: dict) -> None:
        """Publishes the newest checkpoint, writes its name to LATEST, and removes old checkpoints."""
        publish(temporary, final, manifest)
        write_atomically(self.folder / LATEST, final.name + "\n")
        (self.folder / SOURCE).unlink(missing_ok=True)
        if not self.keep:
            return
        if self._intact is None:
            self._intact = {path for path in committed(self.folder) if _is_intact(path)}
        self._intact.add(final)
        known = {path: step_of(path) or 0 for path in self._intact}
        mine = sorted((path for path in known if known[path] <= manifest["step"]), key=known.__getitem__)
        for old in mine[: -self.keep]:
            self._intact.discard(old)
            if old.resolve() != self._source:
                _remove(old)


def set_aside(folder: Path, step: int, damaged: Collection[Path], keep: Callable[[Path], bool]) -> list[Path]:
    """Renames the checkpoints that a run leaves behind when it starts, newest first.

    Args:
        folder: the run's folder `checkpoints`.
        step: where the run starts. Later checkpoints are left behind: the run will reach these steps again.
        damaged: those that could not be read. Others are called abandoned.
        keep: whether an earlier checkpoint belongs to the branch of the run.

    Returns:
        The new paths.
    """
    renamed = []
    for path in committed(folder):
        later = (step_of(path) or 0) > step
        if later or (path not in damaged and not keep(path)):
            renamed.append(_rename(path, "damaged" if path in damaged else "abandoned"))
    if renamed:
        left = committed(folder)
        if left:
            write_atomically(folder / LATEST, left[0].name + "\n")
        else:
            (folder / LATEST).unlink(missing_ok=True)
        sync_folder(folder)
    return renamed


def new_branch(lineage: Sequence[dict], step: int, source: Path | None = None) -> list[dict]:
    """The lineage of a run that leaves the branch of the checkpoint it starts from, or of a new run.

    Args:
        lineage: of that checkpoint: its branches, from the first to its own, each with the step where it began.
        step: of that checkpoint; 0 without one.
    """
    branch = {"branch": secrets.token_hex(4), "from_step": step}
    return [*lineage, branch if source is None else {**branch, "source": str(source)}]


def is_ancestor(lineage: Sequence[dict], step: int, of: Sequence[dict]) -> bool:
    """Whether a checkpoint with this lineage and step lies on the way to one with the lineage `of`.

    Checkpoints of before version 4 have no lineage; of them only the step counts.
    """
    if not lineage or not of:
        return True
    branch = lineage[-1]["branch"]
    for number, entry in enumerate(of):
        if entry["branch"] == branch:
            return number == len(of) - 1 or step <= of[number + 1]["from_step"]
    return False


def remove_leftovers(folder: Path, mine: Path | None = None) -> None:
    """Removes what interrupted saves and removals have left, except `mine`."""
    for pattern in (f".step-*{PARTIAL}", ".step-*.dropped"):
        for left in folder.glob(pattern):
            if left != mine:
                shutil.rmtree(left, ignore_errors=True)


def left_behind(folder: Path) -> list[Path]:
    """What is in a run's folder `checkpoints` beside checkpoints: parts, and what was set aside."""
    return sorted({*folder.glob(".step-*"), *folder.glob("step-*.damaged-*"), *folder.glob("step-*.abandoned-*")})


def _is_intact(path: Path) -> bool:
    try:
        read_manifest(path)
    except CheckpointError:
        return False
    return True


def _remove(path: Path) -> None:
    # Renamed first: a folder that is half removed must not look like a damaged checkpoint.
    renamed = path.with_name(f".{path.name}.dropped")
    try:
        path.rename(renamed)
    except FileNotFoundError:  # somebody else has removed it
        return
    shutil.rmtree(renamed, ignore_errors=True)


def _rename(path: Path, reason: str) -> Path:
    number = 1
    while (other := path.with_name(f"{path.name}.{reason}-{number}")).exists():
        number += 1
    path.rename(other)
    return other
