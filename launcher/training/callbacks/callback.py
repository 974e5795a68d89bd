"""The interface between a run and its callbacks."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Literal

Kind = Literal["train", "eval", "checkpoint", "event"]


class Callback:
    """Is told what happens in a run. Each method does nothing by default; a callback overrides those that it needs.

    `on_train_start`, `on_step_end`, `on_evaluate` and `on_train_end` are called on every rank, between two optimizer
    steps, so they may call collectives. Callbacks that write files, such as the loggers, exist only on rank 0. Of these
    an OSError, such as a full disk, is reported once, and the run goes on: it can perhaps still save.
    """

    def on_train_start(self, step: int) -> bool:
        """Called before the first step, with the number of steps done. Returns whether the run has ended already."""
        return False

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
    """The callbacks of a run, called in this order.

    Attributes:
        failing: the methods whose last call could not write, as `Class.method`, with the reason.
    """

    def __init__(self, callbacks: Iterable[Callback] = ()):
        self.callbacks = list(callbacks)
        self.failing: dict[str, str] = {}

    def add(self, *callbacks: Callback) -> None:
        self.callbacks += callbacks

    def log(self, kind: Kind, record: dict[str, Any]) -> None:
        self._call("on_log", kind, record)

    def event(self, step: int, event: str, **more: Any) -> None:
        """Logs an event, such as a start, a resume or a problem."""
        self.log("event", {"step": step, "event": event, **more})

    def message(self, text: str) -> None:
        self._call("on_message", text)

    def figure(self, name: str, figure: Any, step: int) -> None:
        self._call("on_figure", name, figure, step)

    def train_start(self, step: int) -> bool:
        """Calls all of them. Returns whether one says that the run has ended already."""
        return any(self._call("on_train_start", step))

    def step_end(self, step: int) -> None:
        self._call("on_step_end", step)

    def evaluate(self, step: int, scores: dict[str, float]) -> bool:
        """Calls all of them. Returns whether one asks the run to end."""
        return any(self._call("on_evaluate", step, scores))

    def train_end(self, step: int, scores: dict[str, float]) -> None:
        self._call("on_train_end", step, scores)

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> list[Any]:
        """Calls a method of each. What one returns is not in the list if it could not write."""
        results = []
        for callback in self.callbacks:
            name = f"{type(callback).__name__}.{method}"
            try:
                results.append(getattr(callback, method)(*arguments))
                self.failing.pop(name, None)
            except OSError as error:
                is_new = name not in self.failing
                self.failing[name] = str(error)
                if is_new:
                    what = type(callback).__name__
                    self._tell_others(callback, f"{what} cannot write: {error}; the run goes on without it")
        return results

    def _tell_others(self, failed: Callback, text: str) -> None:
        for callback in self.callbacks:
            if callback is not failed:
                with suppress(OSError):
                    callback.on_message(text)
