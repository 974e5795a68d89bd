"""Gives every option of every command wrong and extreme values, and runs the command with what its parser accepts.

python -m tests.launcher.option_fuzz [COMMAND ...] [--only OPTION ...]

A command must end with 0 or 2 in seconds, without a traceback. What does not is printed, and the exit code is then 1.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass
from importlib import import_module
from pathlib import Path

from ingot.launcher.config.parser import parse
from ingot.launcher.config.reference import COMMANDS
from ingot.launcher.config.schema.options import Option, options
from ingot.launcher.config.schema.types import Range
from ingot.launcher.runtime.exit_codes import BAD_INPUT, DONE, GIVE_UP, BadInput, run_main
from tests.ranks import process_context

SECONDS = 60  # a busy machine may take so long for what takes 3
MEMORY_BYTES = 12 * 10**9  # of addresses: a thread takes 8 MB of them
WRONG = [
    "", "null", "None", "-1", "0", "1e30", "-1e400", "1e-320", "nan", ".inf", "x", "{", "[", "[]", "{}", "[1, [2]]",
    "[{}]", "{a: b}", "9" * 300, "\x00", "1:30", "*a", "true", "../..", "~", "'", "\udcff", "%s%n", "a" * 5000,
]  # fmt: skip
"""Wrong types, signs and sizes, what YAML makes something else of, and texts that are no names of files."""
TEXTS = ["", "\x00", "\udcff", "../..", "a" * 5000]
"""Of these, those that a text is tried with; to a command all others are the same."""
ENDLESS = {
    "run",
    "run.steps",
    "run.epochs",
    "run.tokens",
    "task.epochs",
    "max_tokens",
    "num_samples",
    "copies",
    "method.adversarial_steps",
    "batch.global_size",
}
"""Whose largest value asks for work without an end, which a command does step by step, within its memory."""


@dataclass(frozen=True)
class Case:
    command: str
    option: str
    value: str

    def __str__(self) -> str:
        value = self.value if len(self.value) < 40 else f"{self.value[:20]}... ({len(self.value)} characters)"
        return f"{self.command} --{self.option}={value!r}"


def values_of(option: Option) -> list[str]:
    """Wrong values, and for a number those at its limits and beyond them."""
    kind = option.kind.items[0] if option.kind.items else option.kind
    limits = kind.range or Range()
    found = list(WRONG)
    for limit, step in ((limits.low, -1), (limits.high, 1)):
        if limit is not None:
            near = [limit, limit + step, limit - step]
            found += [f"{number:.17g}" if kind.type is float else str(number) for number in near]
    return list(dict.fromkeys(found if not option.kind.items else [*found, *(f"[{value}]" for value in found)]))


def cases(command: str) -> Iterator[Case]:
    """Of the options themselves; the records in their lists are options of `values_of` the list."""
    for option in options(COMMANDS[command]):
        for value in values_of(option):
            yield Case(command, option.name, value)


def accepted(case: Case) -> object:
    """What the parser makes of the value; None where it refuses it with BadInput, which is all that it may raise."""
    cls = COMMANDS[case.command]
    required = [f"--{option.name}=x" for option in options(cls) if option.default is MISSING]
    try:
        return parse(cls, [*required, f"--{case.option}={case.value}"], "")
    except BadInput:
        return None


def worth_running(wanted: Iterable[Case]) -> Iterator[Case]:
    """The cases that the parser accepts, each configuration once."""
    seen: set[str] = set()
    for case in wanted:
        kind = next(option.kind for option in options(COMMANDS[case.command]) if option.name == case.option)
        texts = kind.type is str or (kind.items and kind.items[0].type is str)
        if (config := accepted(case)) is None or (texts and case.value not in TEXTS):
            continue
        if repr(config) not in seen:
            seen.add(repr(config))
            yield case


def run_case(arguments: list[str], command: str, log: Path) -> None:
    """In a process of its own: the command, with its output in a file and bounded memory."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (
        os.fdopen(1, "w", closefd=False),
        os.fdopen(2, "w", errors="backslashreplace", closefd=False),
    )
    os.chdir(log.parent)
    import torch

    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
    sys.argv = [command, *arguments]
    run_main(import_module(f"ingot.launcher.{command}").main)


def problem_of(case: Case, arguments: list[str], folder: Path) -> str | None:
    """Runs a case. What is wrong with its end, or None."""
    folder.mkdir(parents=True)
    log = folder / "log"
    process = process_context().Process(
        target=run_case, args=([*arguments, f"--{case.option}={case.value}"], case.command, log)
    )
    start = time.monotonic()
    process.start()
    process.join(5 if case.option in ENDLESS else SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None if case.option in ENDLESS else f"still runs after {time.monotonic() - start:.0f} s"
    text = log.read_text(errors="replace") if log.exists() else ""
    if "Traceback" in text:
        return f"traceback: {text.strip().splitlines()[-1][:300]}"
    if process.exitcode == GIVE_UP and "is not finite" in text:
        return None
    if process.exitcode not in (DONE, BAD_INPUT):
        return f"exit code {process.exitcode}: {text.strip()[-300:]}"
    if process.exitcode == BAD_INPUT and "error: " not in text:
        return "exit code 2 without a message"
    return None


class Inputs:
    """What the commands read: a corpus, a run of each kind, a released model, files of a task, images."""

    def __init__(self, folder: Path):
        from ingot.launcher import finetune, prepare, pretrain
        from tests.data.tokenizers.test_image_patches import idx, images
        from tests.launcher.runs import write_config
        from tests.launcher.tiny_models import LABELS, released_bert, write_task

        self.folder = folder
        (folder / "texts").mkdir()
        for name in ("argparse", "textwrap", "tarfile", "typing"):
            source = Path(import_module(name).__file__ or "")
            (folder / f"texts/{name}.py").write_bytes(source.read_bytes())
        self.prepare = ["--input", str(folder / "texts"), "--tokenizer.vocab_size", "512", "--workers", "1"]
        prepare.main([*self.prepare, "--validation_fraction", "0.3", "--output", str(folder / "corpus")])
        self.config = write_config(folder, folder / "corpus")
        quick = ["--parallel.engine", "fsdp", "--run.eval_samples", "4", "--batch.global_size", "4"]
        self.pretrain = ["--config", str(self.config), *quick, "--optimizer.warmup_steps", "0"]
        pretrain.main([*self.pretrain, "--run.steps", "1", "--run.name", "gpt"])
        self.bert = released_bert(folder / "bert")
        task = write_task("classification", folder / "task", 12)
        start = ["--init.model", str(self.bert), "--run.device", "cpu", "--parallel.engine", "fsdp"]
        self.finetune = [*start, *task, "--task.max_length", "48"]
        self.finetune += ["--parallel.precision", "fp32", "--run.steps", "1"]
        finetune.main([*self.finetune, "--run.dir", str(folder / "runs"), "--run.name", "task"])
        self.dev, self.label = folder / "task/dev.jsonl", LABELS
        (folder / "images").write_bytes(idx(images(20)))

    def arguments(self, command: str, place: Path) -> list[str]:
        """What makes the command do its work, in a folder of its own."""
        gpt, task = str(self.folder / "runs/gpt"), str(self.folder / "runs/task")
        made: dict[str, Callable[[], list[str]]] = {
            "pretrain": lambda: [*self.pretrain, "--run.steps", "1", "--run.dir", str(place / "runs")],
            "finetune": lambda: [*self.finetune, "--run.dir", str(place / "runs"), "--batch.global_size", "4"],
            "prepare": lambda: [*self.prepare, "--output", str(place / "corpus")],
            "generate": lambda: ["--checkpoint", gpt, "--prompt", "def", "--max_tokens", "3"],
            "evaluate": lambda: ["--checkpoint", gpt, "--corpus", str(self.folder / "corpus"), "--max_samples", "2"],
            "predict": lambda: ["--checkpoint", task, "--input", str(self.dev)],
            "classify": lambda: [
                *("--checkpoint", gpt, "--input", str(self.dev), "--template", "{text} {label}", "--limit", "2"),
                *("--labels", "a=good", "b=bad"),
            ],
            "export": lambda: ["--checkpoint", gpt, "--output", str(place / "out")],
            "images": lambda: ["--images", str(self.folder / "images"), "--output", str(place / "out.jsonl")],
            "plan": lambda: ["--config", str(self.config)],
        }
        return made[command]()


def problems(wanted: Iterable[Case], inputs: Inputs, folder: Path) -> list[tuple[Case, str]]:
    """Runs those of the cases that are worth it. Those that end as they should not, each with what is wrong."""
    found = []
    for number, case in enumerate(worth_running(wanted)):
        place = folder / f"case-{number}"
        if problem := problem_of(case, inputs.arguments(case.command, place), place):
            found.append((case, problem))
            print(f"{case}\n    {problem}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(COMMANDS)}; all by default")
    parser.add_argument("--only", nargs="+", metavar="OPTION", help="only these options")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        inputs, number = Inputs(Path(name)), 0
        for command in given.commands or COMMANDS:
            wanted = [case for case in cases(command) if given.only is None or case.option in given.only]
            print(f"{command}: {len(wanted)} values", flush=True)
            number += len(problems(wanted, inputs, Path(name) / "cases" / command))
    print(f"{number} ended as they should not")
    return int(number > 0)


if __name__ == "__main__":
    sys.exit(main())
