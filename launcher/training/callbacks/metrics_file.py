"""The metrics file: each record as a line of JSON."""

import json
import math
import time
from pathlib import Path
from typing import Any

from ingot.launcher.training.callbacks.callback import Callback, Kind


class MetricsFile(Callback):
    """Appends records to `folder`/metrics.jsonl. NaN and infinity, which JSON does not have, become null."""

    def __init__(self, folder: Path):
        self._file = (folder / "metrics.jsonl").open("a", buffering=1)

    def on_log(self, kind: Kind, record: dict[str, Any]) -> None:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps({"kind": kind, **clean, "time": round(time.time(), 3)}) + "\n")

    def close(self) -> None:
        self._file.close()
