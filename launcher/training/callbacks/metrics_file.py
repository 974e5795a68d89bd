"""The metrics file: each record as a line of JSON."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingot.durable_files import write_atomically
from ingot.launcher.training.callbacks.appended_file import AppendedFile
from ingot.launcher.training.callbacks.callback import Callback, Kind

NAME = "metrics.jsonl"
SUPERSEDED = "metrics.superseded.jsonl"


class MetricsFile(Callback):
    """Appends records to `folder`/metrics.jsonl. NaN and infinity, which JSON does not have, become null.

    Records of steps after `step`, which a resumed run repeats, are moved to `folder`/metrics.superseded.jsonl.
    """

    def __init__(self, folder: Path, step: int):
        _move_superseded(folder, step)
        self._file = AppendedFile(folder / NAME)

    def on_log(self, kind: Kind, record: dict[str, Any]) -> None:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.append(json.dumps({"kind": kind, **clean, "time": round(time.time(), 3)}))


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file. Lines that an interrupted write has left incomplete are not among them."""
    with path.open("rb") as lines:
        for line in lines:
            if (record := _parse(line)) is not None:
                yield record


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _move_superseded(folder: Path, step: int) -> None:
    path = folder / NAME
    if not path.exists():
        return
    kept, moved, torn = [], [], False
    with path.open("rb") as lines:
        for line in lines:
            record = _parse(line)
            torn |= record is None
            if record is not None and isinstance(record.get("step"), int) and record["step"] > step:
                moved.append(line)
            elif record is not None:
                kept.append(line if line.endswith(b"\n") else line + b"\n")
    if moved:
        with (folder / SUPERSEDED).open("ab") as file:
            file.writelines(moved)
    if moved or torn:
        write_atomically(path, b"".join(kept))
