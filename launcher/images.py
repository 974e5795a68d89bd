"""Writes images as texts of patch tokens, which everything else reads like text, and a tokenizer for them.

python launcher/images.py --images train-images.idx.gz --labels train-labels.idx.gz --output mnist/train.jsonl
python launcher/images.py --images test-images.idx.gz --labels test-labels.idx.gz --output mnist/test.jsonl
"""

if not __package__:  # run as a file
    import _clone  # noqa: F401

from ingot.launcher.config.images import ImageOptions
from ingot.launcher.config.parser import parse
from ingot.launcher.runtime.exit_codes import DONE, bad_input, run_main


def main(argv: list[str]) -> int:
    with bad_input():
        options = parse(ImageOptions, argv, __doc__)
        from ingot.launcher.preparation.images import write_images

        print(write_images(options))
    return DONE


if __name__ == "__main__":
    run_main(main)
