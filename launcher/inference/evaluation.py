"""The scores of a model, as a dictionary and as text: the work of launcher/evaluate.py."""

import math
import time

from ingot.launcher.config.evaluate import EvaluateOptions
from ingot.launcher.inference.perplexity import Scorer


def evaluate(options: EvaluateOptions) -> dict:
    """The scores, with the names of the model and the data.

    Args:
        options: checked already.

    Raises:
        ValueError: there is no such checkpoint, tokenizer or corpus, or the options do not fit the model.
        OSError: a file cannot be read.
    """
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
        lines.append(
            f"a model that knows only the frequency of each token would have loss {scores['unigram_entropy']:.4f}"
        )
    return "\n".join(lines)
