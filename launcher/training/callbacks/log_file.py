"""The log file: each record and message as a line with its time."""

import time
from pathlib import Path
from typing import Any

from ingot.launcher.training.callbacks.appended_file import AppendedFile
from ingot.launcher.training.callbacks.callback import Callback, Kind
from ingot.launcher.training.callbacks.text import format_record


class LogFile(Callback):
    """Appends lines to `folder`/log.txt. `steps` are the optimizer steps of the run."""

    def __init__(self, folder: Path, steps: int):
        self._file, self._steps = AppendedFile(folder / "log.txt"), steps

    def on_log(self, kind: Kind, record: dict[str, Any]) -> None:
        self.on_message(format_record(kind, record, self._steps))

    def on_message(self, text: str) -> None:
        self._file.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")
