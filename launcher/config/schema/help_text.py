"""What `--help` prints: the description of a command and every option with type, range, default and meaning."""

import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import MISSING, is_dataclass

from ingot.launcher.config.schema.options import Option, written


def help_text(options: Iterable[Option], description: str) -> str:
    width = max(60, min(120, shutil.get_terminal_size().columns))
    command = _command(description)
    lines = [f"usage: {command} [--config FILE] [--OPTION VALUE ...]", "", description.strip(), "", "options:"]
    lines += _entry("--help", "print this text", width)
    lines += _entry(
        "--config FILE", "YAML file with the same options; may be given more than once, later ones win", width
    )
    lines += _entry("--print_config", "print the whole configuration as YAML, and stop", width)
    for option in options:
        if option.section:
            lines += ["", *textwrap.wrap(f"{option.name}: {option.meaning}", width)]
            if not option.kind.optional:
                continue
        default = option.default
        if default is MISSING:
            told = "required"
        else:
            told = "default: " + ("null" if default is None or is_dataclass(default) else written(default))
        lines += _entry(f"--{option.name}", f"{option.meaning} (type: {option.kind}; {told})", width)
    return "\n".join(lines)


def _command(description: str) -> str:
    """The command's file, which the examples in its description name."""
    found = [word for word in description.split() if word.startswith("launcher/") and word.endswith(".py")]
    return found[0].removeprefix("launcher/") if found else "COMMAND"


def _entry(name: str, text: str, width: int) -> list[str]:
    return [f"  {name}", *textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]
