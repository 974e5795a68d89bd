"""Applies a fine-tuned model to a file or to lines of text.

python launcher/predict.py --checkpoint runs/sst2 --input test.tsv --output predictions.jsonl
python launcher/predict.py --checkpoint runs/sst2 --text "A warm, funny, engaging film."
python launcher/predict.py --checkpoint runs/sst2 --input test.tsv --score true     # the file has labels
"""

if not __package__:  # run as a file
    import _clone  # noqa: F401

from ingot.launcher.config.parser import parse
from ingot.launcher.config.predict import PredictOptions
from ingot.launcher.runtime.exit_codes import DONE, bad_input, run_main


def main(argv: list[str]) -> int:
    with bad_input():
        options = parse(PredictOptions, argv, __doc__)
        options.check()
        from ingot.launcher.inference.prediction import predict

        predict(options)
    return DONE


if __name__ == "__main__":
    run_main(main)
