"""The first line of a command that needs seconds for its imports."""

import os
import sys
from contextlib import suppress


def say_loading(libraries: str) -> None:
    """Says on standard error, on rank 0, what is being loaded. To be called before the imports."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):
            print(f"loading {libraries} ...", file=sys.stderr, flush=True)
