"""The interface between a run and its callbacks."""

from collections.abc import Iterable
from typing import Any, Literal

Kind = Literal["train", "eval", "checkpoint", "event"]


class Callback:
    """Is told what happens in a run. Each method does nothing by default; a callback overrides those that it needs.

    `on_step_end`, `on_evaluate` and `on_train_end` are called on every rank, between two optimizer steps, so they may
    call collectives. Callbacks that write files, such as the loggers, exist only on rank 0.
    """

    def on_step_end(self, step: int) -> None:
        """Called after each optimizer step (counted from 1)."""

    def on_log(self, kind: Kind, record: dict[str, Any]) -> None:
        """Called with each record: the content of a line of metrics.jsonl. `record["step"]` is the optimizer step."""

    def on_message(self, text: str) -> None:
        """Called with each message for people."""

    def on_figure(self, name: str, figure: Any, step: int) -> None:
        """Called with each figure of matplotlib."""

    def on_evaluate(self, step: int, scores: dict[str, float]) -> bool:
        """Called after each evaluation. Returns whether the run should end now."""
        return False

    def on_train_end(self, step: int, scores: dict[str, float]) -> None:
        """Called at the end of training, with the scores of the last evaluation (empty without one)."""

    def close(self) -> None:
        """Called once, also after an error."""


class Callbacks:
    """The callbacks of a run, called in this order."""

    def __init__(self, callbacks: Iterable[Callback] = ()):
        self.callbacks = list(callbacks)

    def add(self, *callbacks: Callback) -> None:
        self.callbacks += callbacks

    def log(self, kind: Kind, record: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.on_log(kind, record)

    def event(self, step: int, event: str, **more: Any) -> None:
        """Logs an event, such as a start, a resume or a problem."""
        self.log("event", {"step": step, "event": event, **more})

    def message(self, text: str) -> None:
        for callback in self.callbacks:
            callback.on_message(text)

    def figure(self, name: str, figure: Any, step: int) -> None:
        for callback in self.callbacks:
            callback.on_figure(name, figure, step)

    def step_end(self, step: int) -> None:
        for callback in self.callbacks:
            callback.on_step_end(step)

    def evaluate(self, step: int, scores: dict[str, float]) -> bool:
        """Calls all of them. Returns whether one asks the run to end."""
        return any([callback.on_evaluate(step, scores) for callback in self.callbacks])

    def train_end(self, step: int, scores: dict[str, float]) -> None:
        for callback in self.callbacks:
            callback.on_train_end(step, scores)

    def close(self) -> None:
        for callback in self.callbacks:
            callback.close()
