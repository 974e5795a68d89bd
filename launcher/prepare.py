"""Makes a corpus folder of text: trains a tokenizer (or takes one), tokenizes, writes shards and manifest.

python launcher/prepare.py --input DIR_OR_FILES... --output CORPUS --tokenizer.vocab_size 8192
python launcher/prepare.py --input DIR_OR_FILES... --output CORPUS --tokenizer.path FOLDER
torchrun ... launcher/prepare.py --config FILE                          shares the work out; all ranks see one folder
python launcher/prepare.py index TAR... --output CORPUS --tokenizer FOLDER   a corpus of token tars that are there
python launcher/prepare.py verify CORPUS                                checks everything, says what is wrong where
"""

if __name__ == "__main__" and not __package__:  # run as a file; a worker process has the import path already
    import _clone  # noqa: F401

from ingot.launcher.config.parser import parse
from ingot.launcher.config.prepare import PrepareOptions, check
from ingot.launcher.runtime.exit_codes import DONE, bad_input, run_main

COMMANDS = ("index", "verify")


def main(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        from ingot.launcher.preparation import corpus_commands

        return getattr(corpus_commands, argv[0])(argv[1:])
    with bad_input():
        options = parse(PrepareOptions, argv, __doc__)
        check(options)
        from ingot.launcher.preparation.prepare import prepare

        if summary := prepare(options):
            print(summary)
    return DONE


if __name__ == "__main__":
    run_main(main)
