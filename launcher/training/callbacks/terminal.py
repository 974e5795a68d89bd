"""The terminal: a progress bar, and lines on standard error."""

import sys
import time
from typing import Any

from tqdm import tqdm

from ingot.launcher.training.callbacks.callback import Callback, Kind
from ingot.launcher.training.callbacks.text import format_record, speed

QUIET_SECONDS = 10.0
"""Without a terminal: after so many seconds without a line, one says which step is done."""


class Terminal(Callback):
    """Shows a progress bar. If standard error is not a terminal, it prints each train record as a line instead.

    Args:
        steps: optimizer steps of the run.
        step: optimizer steps done.
    """

    def __init__(self, steps: int, step: int):
        self._steps, self._said = steps, time.monotonic()
        self._bar = tqdm(total=steps, initial=step, unit="step", disable=None, dynamic_ncols=True)

    def on_step_end(self, step: int) -> None:
        self._bar.update(step - self._bar.n)
        if self._bar.disable and time.monotonic() - self._said > QUIET_SECONDS:
            self.on_message(f"step {step}/{self._steps}")

    def on_log(self, kind: Kind, record: dict[str, Any]) -> None:
        if kind == "train" and not self._bar.disable:
            self._bar.set_postfix_str(f"loss {record['loss']:.3f}, {speed(record)}", refresh=False)
        else:
            self.on_message(format_record(kind, record, self._steps))

    def on_message(self, text: str) -> None:
        self._said = time.monotonic()
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
