"""Signals that ask a run to stop."""

import signal
from types import FrameType, TracebackType


class StopSignals:
    """Within its context, SIGTERM, SIGUSR1 and the first Ctrl-C set `requested` instead of ending the process.

    A second Ctrl-C raises KeyboardInterrupt. At the end of the context, the previous handlers are restored.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False
        self._before: dict = {}

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._request) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested = True
