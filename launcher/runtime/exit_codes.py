"""Exit codes. An error that the user can fix ends a command with one message and code 2, without a traceback."""

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from ingot.launcher.runtime.parent_watchdog import watch_launcher

DONE = 0
BAD_INPUT = 2
REQUEUE = 75  # stopped on request, or another process died: start again, and it continues from the last checkpoint
GIVE_UP = 93  # starting again would fail again
WAIT_SECONDS = 20  # other local ranks give rank 0 so long to report the same error first
INTERRUPTED = 130  # Ctrl-C, the code that shells use


class BadInput(Exception):
    """Bad configuration or input. The message says what is wrong and what would be right."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Turns a ValueError or OSError into BadInput. For parsing, checking and building, where users can fix the cause.

    Not for training: there these errors are bugs, and their traceback is needed.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error


def run_main(main: Callable[[list[str]], int]) -> None:
    """Runs a command and exits with its code. With INGOT_TRACEBACK=1 a BadInput has a traceback."""
    if lost := watch_launcher():
        with suppress(OSError):  # the output may have been a pipe to the launcher
            print(
                f"rank {os.environ.get('RANK', '?')}: {lost} has died before this process began; stopping",
                file=sys.stderr,
                flush=True,
            )
        exit_process(REQUEUE)
    try:
        code = main(sys.argv[1:])
    except BadInput as error:
        if os.environ.get("INGOT_TRACEBACK") == "1":
            raise
        rank = int(os.environ.get("LOCAL_RANK", 0))
        if rank:  # local rank 0 has usually the same error: it prints it, and the launcher ends this process
            time.sleep(WAIT_SECONDS)
        print(f"error{f' on local rank {rank}' if rank else ''}: {error}", file=sys.stderr, flush=True)
        code = BAD_INPUT
    except KeyboardInterrupt:
        code = INTERRUPTED
    exit_process(code)


def exit_process(code: int) -> NoReturn:
    """Runs the exit functions and ends the process, without the interpreter's own finalization.

    A thread of a process group may free a tensor at this time, and needs the interpreter's lock for it. During
    finalization that aborts the process, and a run that has finished would end with SIGABRT.
    """
    atexit._run_exitfuncs()  # private in Python's atexit; multiprocessing ends its processes with it as well
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
