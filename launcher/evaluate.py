"""Scores a model on a corpus or on text files: perplexity and bits per byte, or, for a BERT, its loss at a fixed mask.

python launcher/evaluate.py --checkpoint runs/demo --corpus corpora/demo
python launcher/evaluate.py --checkpoint runs/demo --text novel.txt poem.txt --stride 256 --output scores.json
"""

import json
from pathlib import Path

if not __package__:  # run as a file
    import _clone  # noqa: F401

from ingot.launcher.config.evaluate import EvaluateOptions
from ingot.launcher.config.parser import parse
from ingot.launcher.runtime.exit_codes import DONE, bad_input, run_main


def main(argv: list[str]) -> int:
    with bad_input():
        options = parse(EvaluateOptions, argv, __doc__)
        options.check()
        from ingot.launcher.inference.evaluation import describe, evaluate

        scores = evaluate(options)
        print(describe(scores))
        line = json.dumps(scores, ensure_ascii=False)
        if options.output is None:
            print(line)
        else:
            Path(options.output).write_text(line + "\n", encoding="utf-8")
    return DONE


if __name__ == "__main__":
    run_main(main)
