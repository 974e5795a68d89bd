"""Exit codes. An error that the user can fix ends a command with one message and code 2, without a traceback."""

import atexit
import dis
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from ingot.launcher.runtime.parent_watchdog import watch_launcher
from ingot.packages import BAD_INPUT, missing

DONE = 0
REQUEUE = 75  # stopped on request, or another process died: start again, and it continues from the last checkpoint
GIVE_UP = 93  # starting again would fail again
WAIT_SECONDS = 20  # other local ranks give rank 0 so long to report the same error first
INTERRUPTED = 130  # Ctrl-C, the code that shells use
PIPE_CLOSED = 141  # SIGPIPE, the same


class BadInput(Exception):
    """Bad configuration or input. The message says what is wrong and what would be right."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Turns a ValueError or OSError into BadInput. For parsing, checking and building, where users can fix the cause.

    Not for training: there these errors are bugs, and their traceback is needed.
    """
    try:
        yield
    except BrokenPipeError:  # whoever reads the output has enough of it, as `head` does
        raise
    except (ValueError, OSError) as error:
        raise BadInput(explain(error)) from error


def explain(error: ValueError | OSError) -> str:
    """The message of an error: ours as it is; one of Python or a library with the file and the place that it lacks."""
    steps = list(traceback.walk_tb(error.__traceback__))
    own = [frame for frame, _ in steps if frame.f_globals.get("__name__", "").split(".")[0] in ("ingot", "__main__")]
    if not steps or _is_raised_in(own, error.__traceback__) or (isinstance(error, OSError) and error.filename):
        return str(error)
    paths = [value for frame in reversed(own) for value in frame.f_locals.values() if isinstance(value, Path)]
    file = f"{paths[0]}: " if paths and str(paths[0]) not in str(error) else ""
    frame = own[-1] if own else steps[-1][0]
    place = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"
    return (
        f"{file}{str(error) or 'no message'} ({type(error).__name__} in {place}, which expected no such input; "
        f"INGOT_TRACEBACK=1 shows the way to it)"
    )


def _is_raised_in(own: list[FrameType], trace: TracebackType | None) -> bool:
    """Whether a `raise` of our own code has made the error; functions in C have no frame of their own."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame not in own:
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


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
    except ModuleNotFoundError as error:
        if (message := missing(error)) is None or os.environ.get("INGOT_TRACEBACK") == "1":
            raise
        print(f"error: {message}", file=sys.stderr, flush=True)
        code = BAD_INPUT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still holds goes nowhere
        code = PIPE_CLOSED
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
