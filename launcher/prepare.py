"""Makes a corpus folder of text: trains a tokenizer (or takes one), tokenizes, writes shards and manifest.

python launcher/prepare.py --input DIR_OR_FILES... --output CORPUS --tokenizer.vocab_size 8192
python launcher/prepare.py --input DIR_OR_FILES... --output CORPUS --tokenizer.path FOLDER
torchrun ... launcher/prepare.py --config FILE                          shares the work out; all ranks see one folder
python launcher/prepare.py index TAR... --output CORPUS --tokenizer FOLDER   a corpus of token tars that are there
python launcher/prepare.py verify CORPUS                                checks everything, says what is wrong where
"""

from __future__ import annotations

from pathlib import Path

if not __package__:  # run as a file
    import _clone  # noqa: F401

import json
from collections import deque
from dataclasses import dataclass

from ingot.launcher.config.parser import parse
from ingot.launcher.config.prepare import InputOptions, PrepareOptions, TokenizerOptions, check
from ingot.launcher.runtime.exit_codes import bad_input, run_main

__all__ = ["InputOptions", "PrepareOptions", "Summary", "TokenizerOptions", "check", "prepare"]

COMMANDS = ("index", "verify")
LISTS = ("input", "include", "exclude", "where")


@dataclass
class Summary:
    """What `prepare` made: the finished folder, its manifest, what was left out, and seconds of each phase."""

    folder: Path
    manifest: dict
    skipped: str
    seconds: dict[str, float]
    reused: bool = False

    def __str__(self) -> str:
        lines = [f"corpus {self.folder} {'is up to date' if self.reused else 'is ready'}"]
        for name, split in self.manifest["splits"].items():
            ratio = split["num_tokens"] / max(1, split["text_bytes"])
            lines.append(
                f"  {name:<11}{split['num_documents']:>9,} documents {split['num_tokens']:>13,} tokens "
                f"{split['text_bytes']:>14,} bytes ({ratio:.3f} tokens per byte), "
                f"unigram entropy {split['unigram_entropy']:.4f} nats per token"
            )
        lines.append(f"  vocabulary {self.manifest['tokenizer']['vocab_size']:,}; skipped: {self.skipped or 'none'}")
        phases = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
        lines.append(f"  {sum(self.seconds.values()):.1f} seconds ({phases})")
        return "\n".join(lines)


def prepare(options: PrepareOptions) -> Summary | None:
    """Make the corpus folder, or find it made already; None on ranks other than 0, which only help.

    Raises ValueError and OSError for what a user can mend.
    """
    from ingot.data.writing.writer import beside
    from ingot.launcher.preparation.pipeline import help_out, lead
    from ingot.launcher.preparation.shared_work import Team

    check(options)
    output = Path(options.output)
    team = Team.from_environment(beside(output, ".partial"), options.timeout_seconds)
    if team.rank:
        help_out(options, team)
        return None
    outcome = lead(options, team)
    return Summary(output, outcome.manifest, outcome.skipped, outcome.seconds, outcome.reused)


def spread_lists(argv: list[str], names: tuple[str, ...] = LISTS) -> list[str]:
    """`--input a b` as `--input=["a", "b"]` and `--overwrite` as `--overwrite=true`: the parser wants one word each."""
    result: list[str] = []
    rest = deque(argv)
    while rest:
        word = rest.popleft()
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and equals and name in names and not value.startswith("["):
            result.append(f"--{name}={json.dumps([value])}")
            continue
        values: list[str] = []
        if word.startswith("--") and not equals and name in (*names, "overwrite"):
            while rest and not rest[0].startswith("--"):
                values.append(rest.popleft())
            if name == "overwrite":
                word += "=" + (values[0] if values else "true")
            else:
                word += "=" + (values[0] if values and values[0].startswith("[") else json.dumps(values))
        result.append(word)
    return result


def main(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        from ingot.launcher.preparation import corpus_commands

        return getattr(corpus_commands, argv[0])(argv[1:])
    with bad_input():
        if summary := prepare(parse(PrepareOptions, spread_lists(argv), __doc__)):
            print(summary)
    return 0


if __name__ == "__main__":
    run_main(main)
