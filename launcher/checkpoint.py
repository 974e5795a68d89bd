"""Lists, checks, compares, averages and converts checkpoints, on any machine, without a GPU and with little memory.

checkpoint.py list RUN                                 the checkpoints of a run, intact or damaged
checkpoint.py show CKPT                                step, layout, tensors, and which file has which part
checkpoint.py verify CKPT...                           compares every byte with the digests; exit code 0, or 2
checkpoint.py diff A B                                 exit code 0 if they are equal, 1 if they differ
checkpoint.py average A B... --output RUN              a run folder with the mean of their weights
checkpoint.py export CKPT --output DIR                 a Hugging Face folder; with --format dcp, torch's format
checkpoint.py import DIR --config FILE --output RUN    from DeepSpeed ZeRO, torch DCP or transformers' Trainer, with
                                                       the optimizer; --family names whose model it is
checkpoint.py plan CKPT --config FILE --ranks N        whether it can be loaded into another layout

CKPT is a run folder, which means its newest intact checkpoint, or the folder of a checkpoint.
"""

import argparse
import math
from pathlib import Path
from typing import NoReturn

if not __package__:  # run as a file
    import _clone  # noqa: F401

from ingot.launcher.config.schema.types import Range
from ingot.launcher.runtime.exit_codes import BadInput, bad_input, run_main


class _Number:
    """A number within a range, for argparse."""

    def __init__(self, kind: type[int] | type[float], limits: Range):
        self.kind, self.limits = kind, limits

    def __call__(self, text: str) -> float:
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if value not in self.limits:
            name = "a whole number" if self.kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text[:80]!r} must be {name} {self.limits}")
        return value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}\n{self.format_usage().strip()}")


def parser() -> argparse.ArgumentParser:
    whole = _Parser(prog="checkpoint.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    command = add("list", "The checkpoints of a run, newest first.")
    command.add_argument("run", type=Path)
    command = add("show", "The tensors of a checkpoint, and which file has which part.")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("--tensor", default="*", help="a pattern of names, such as 'model/blocks.0.*'")
    command.add_argument("--digests", action="store_true", help="print the digest of each tensor")
    command = add("verify", "Reads every byte, and compares each tensor with its digest.")
    command.add_argument("checkpoint", type=Path, nargs="+")
    command = add("diff", "Which tensors and settings of two checkpoints differ, and by how much.")
    command.add_argument("one", type=Path)
    command.add_argument("other", type=Path)
    command.add_argument("--weights", action="store_true", help="compare only the weights, not the optimizer")
    command = add("average", "The mean of the weights of several checkpoints of one model, without an optimizer.")
    command.add_argument("checkpoint", type=Path, nargs="+")
    command.add_argument("--output", type=Path, required=True, help="a new run folder")
    command.add_argument(
        "--coefficients",
        "--shares",  # the old name
        type=_Number(float, Range(-(10**6), 10**6)),
        nargs="+",
        help="one for each checkpoint; the default is 1 / their number",
    )
    command = add("export", "A folder for other software.")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--format", choices=["huggingface", "dcp"], default="huggingface")
    command = add("import", "A run folder from a checkpoint of DeepSpeed ZeRO, torch DCP or transformers' Trainer.")
    command.add_argument("source", type=Path, help="a folder of DeepSpeed, of DCP, or a checkpoint-N of the Trainer")
    command.add_argument(
        "--family",
        help="whose names the source has: a model_type of transformers (gpt2, llama, qwen2, qwen3, bert, roberta, "
        "modernbert), or torchtitan for its Llama; the default is Ingot's own",
    )
    command.add_argument("--config", type=Path, required=True, help="configuration of the run, whose model must fit")
    command.add_argument("--output", type=Path, required=True, help="a new run folder")
    command.add_argument(
        "--step",
        type=_Number(int, Range(0, 10**9)),
        help="number of optimizer steps that were done, if the source is silent",
    )
    command = add("plan", "Whether a checkpoint can be loaded with a configuration, and how much each rank would read.")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("--config", type=Path, required=True)
    command.add_argument("--ranks", type=_Number(int, Range(1, 10**6)), required=True)
    return whole


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    from ingot.launcher.checkpoints import commands

    with bad_input():
        return commands.COMMANDS[options.command](options)


if __name__ == "__main__":
    run_main(main)
