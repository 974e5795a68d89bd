"""Exit codes, and how an error that the user can mend ends a command: one message, code 2, no traceback."""

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
REQUEUE = 75  # stopped on request, or another process died: worth starting again, from the last checkpoint
GIVE_UP = 93  # starting again would fail again
WAIT_SECONDS = 20
INTERRUPTED = 130  # Ctrl-C, as shells count it


class BadInput(Exception):
    """Bad configuration or input; the message says what is wrong and what would be right."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Around parsing, checking and building, where a ValueError or OSError means something that the user can mend.

    Not around training: there the same errors would be bugs, and want their traceback.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error


def run_main(main: Callable[[list[str]], int]) -> None:
    """Runs a command and exits with its code. INGOT_TRACEBACK=1 shows where a BadInput came from."""
    watch_launcher()
    try:
        code = main(sys.argv[1:])
    except BadInput as error:
        if os.environ.get("INGOT_TRACEBACK") == "1":
            raise
        rank = int(os.environ.get("LOCAL_RANK", 0))
        if rank:  # rank 0 of this machine mostly saw the same: let it speak, and its launcher end this process
            time.sleep(WAIT_SECONDS)
        print(f"error{f' on local rank {rank}' if rank else ''}: {error}", file=sys.stderr, flush=True)
        code = BAD_INPUT
    except KeyboardInterrupt:
        code = INTERRUPTED
    exit_process(code)


def exit_process(code: int) -> NoReturn:
    """Ends the process after its exit functions, but without taking the interpreter down.

    A thread of a process group that is still about to let go of a tensor asks for the interpreter's lock; where the
    interpreter is already going down, that aborts the process, and a finished run would report SIGABRT.
    """
    atexit._run_exitfuncs()
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
