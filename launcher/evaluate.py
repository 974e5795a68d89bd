"""Scores a model on a corpus or on text files: perplexity and bits per byte, or, for a BERT, its loss at a fixed mask.

python launcher/evaluate.py --checkpoint runs/demo --corpus corpora/demo
python launcher/evaluate.py --checkpoint runs/demo --text novel.txt poem.txt --stride 256 --output scores.json
"""

import json
import math
import time
from pathlib import Path

if not __package__:  # run as a file
    import _clone  # noqa: F401

from ingot.launcher.config.evaluate import EvaluateOptions
from ingot.launcher.config.parser import parse
from ingot.launcher.prepare import spread_lists
from ingot.launcher.runtime.exit_codes import DONE, bad_input, run_main


def evaluate(options: EvaluateOptions) -> dict:
    """The scores, with what they are scores of.

    Raises:
        ValueError: no such checkpoint, tokenizer or corpus, or options that do not fit.
        OSError: a file that cannot be read.
    """
    options.check()
    from ingot.launcher.inference.perplexity import Scorer

    started = time.perf_counter()
    scores = Scorer(options).scores()
    return scores | {"seconds": round(time.perf_counter() - started, 3)}


def describe(scores: dict) -> str:
    """The scores for people."""
    where = f"split {scores['split']} of {', '.join(scores['corpus'])}" if "corpus" in scores else "text"
    lines = [f"{scores['checkpoint']} on {where}, {scores['dtype']}: {scores['how']}"]
    unit = "token" if scores["kind"] == "causal" else "masked token"
    text = f"loss {scores['loss']:.4f} nats per {unit} over {scores['num_targets']:,}, "
    text += f"{'' if scores['kind'] == 'causal' else 'pseudo-'}perplexity {scores['perplexity']:.4f}"
    if "bits_per_byte" in scores:
        text += f", {scores['bits_per_byte']:.4f} bits per byte"
    lines.append(text)
    if "unigram_entropy" in scores and math.isfinite(scores["unigram_entropy"]):
        lines.append(f"a model that knows only how frequent each token is there has {scores['unigram_entropy']:.4f}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    with bad_input():
        options = parse(EvaluateOptions, spread_lists(argv, ("corpus", "text")), __doc__)
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
