"""The log file: each record and message as a line with its time."""

import logging
from pathlib import Path
from typing import Any

from ingot.launcher.training.callbacks.callback import Callback, Kind
from ingot.launcher.training.callbacks.text import format_record


class LogFile(Callback):
    """Appends lines to `folder`/log.txt."""

    def __init__(self, folder: Path):
        path = folder / "log.txt"
        self._logger = logging.getLogger(f"ingot.{path}")
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        self._handler = logging.FileHandler(path)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._logger.addHandler(self._handler)

    def on_log(self, kind: Kind, record: dict[str, Any]) -> None:
        self._logger.info(format_record(kind, record))

    def on_message(self, text: str) -> None:
        self._logger.info(text)

    def close(self) -> None:
        self._logger.removeHandler(self._handler)
        self._handler.close()
