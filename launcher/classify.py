"""Classifies texts with a pretrained model, without training: by a template and each label's words.

python launcher/classify.py --checkpoint FOLDER --input dev.tsv --template "Review: {sentence} Sentiment: {label}" \
    --labels "0=negative" "1=positive" --label_column label
python launcher/classify.py ... --examples train.tsv --shots 4 --calibrate true
"""

if not __package__:  # run as a file
    import _clone  # noqa: F401

from ingot.launcher.config.classify import ClassifyOptions
from ingot.launcher.config.parser import parse
from ingot.launcher.runtime.exit_codes import DONE, bad_input, run_main


def main(argv: list[str]) -> int:
    with bad_input():
        options = parse(ClassifyOptions, argv, __doc__)
        options.check()
        from ingot.launcher.inference.classification import classify

        classify(options)
    return DONE


if __name__ == "__main__":
    run_main(main)
