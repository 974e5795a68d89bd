"""`ingot COMMAND ...`: the commands of launcher/ under one name, from any folder. `python -m ingot` is the same."""

import ast
import importlib
import sys
from pathlib import Path

import ingot.launcher
from ingot.launcher.runtime.exit_codes import BAD_INPUT, run_main
from ingot.packages import report_missing

COMMANDS = (
    "prepare", "pretrain", "finetune", "generate", "predict", "classify", "evaluate", "export", "checkpoint", "plan",
    "images", "torchrun",
)  # fmt: skip


def usage() -> str:
    """One line for each command, from the first line of its file."""
    lines = ["usage: ingot COMMAND [OPTION ...]; ingot COMMAND --help shows the options", ""]
    for name in COMMANDS:
        source = (Path(ingot.launcher.__path__[0]) / f"{name}.py").read_text()
        lines.append(f"  {name:<11} {(ast.get_docstring(ast.parse(source)) or '').partition(chr(10))[0]}")
    return "\n".join(lines)


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name in (None, "-h", "--help"):
        print(usage())
        sys.exit(0)
    if name not in COMMANDS:
        print(f"error: there is no command {name}\n{usage()}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    del sys.argv[1]
    sys.excepthook = report_missing
    run_main(importlib.import_module(f"ingot.launcher.{name}").main)


if __name__ == "__main__":
    main()
