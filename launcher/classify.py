"""Classifies texts with a pretrained model, without training: by a template and each label's words.

python launcher/classify.py --checkpoint FOLDER --input dev.tsv --template "Review: {sentence} Sentiment: {label}" \
    --labels "0=negative" "1=positive" --label label
python launcher/classify.py ... --examples train.tsv --shots 4 --calibrate true
"""

import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

if not __package__:  # run as a file
    import _clone  # noqa: F401

from ingot.launcher.config.parser import parse
from ingot.launcher.prepare import spread_lists
from ingot.launcher.runtime.exit_codes import DONE, bad_input, run_main


@dataclass
class ClassifyOptions:
    """What to ask of which texts."""

    checkpoint: str
    """A run, a checkpoint, or a Hugging Face folder of a language model: a GPT, or a BERT with its masked head."""
    input: str
    """File of the texts: .tsv, .csv, .jsonl, .json, .parquet, or what datasets saved."""
    template: str
    """A text with slots {COLUMN} for columns of the file, and {label} where a label's words stand."""
    labels: list[str]
    """Each label and its words, as LABEL=WORDS."""
    label: str | None = None
    """Column of the true label: prints the scores beside the predictions."""
    examples: str | None = None
    """File of examples with that column, of which some stand before each text."""
    shots: int = 0
    """Examples of each label that stand before each text."""
    separator: str = "\n\n"
    """What stands between examples."""
    calibrate: bool = False
    """Take off each label's score what it gets from texts that say nothing (Zhao et al. 2021)."""
    normalise: Literal["sum", "mean"] = "sum"
    """Likelihood of words of several tokens: their sum, or their mean, which favours long ones less."""
    limit: int = 0
    """Texts to read; 0 reads all."""
    seed: int = 1234
    """Of the choice of examples."""
    output: str | None = None
    """File for the predictions, a JSON object a line; by default standard output."""
    tokenizer: str | None = None
    """Tokenizer folder; by default the one beside the weights."""
    device: str = "cpu"
    """Where to compute, in torch's words."""


def classify(options: ClassifyOptions) -> None:
    """Writes the predictions, and the scores where the labels are known.

    Raises:
        ValueError, OSError: a file, template or label that does not fit.
    """
    words = dict(part.split("=", 1) if "=" in part else (part, part) for part in options.labels)
    if len(words) < 2:
        raise ValueError(f"labels are {', '.join(words)}; give two or more, as LABEL=WORDS")
    if options.shots and (options.examples is None or options.label is None):
        raise ValueError("shots needs examples, a file, and label, its column of true labels")

    from ingot.data.tasks.encoding import text_of
    from ingot.data.tasks.labels import class_name, number_of
    from ingot.data.tasks.records import read_records
    from ingot.launcher.finetuning.metrics import classification_report, classification_scores
    from ingot.launcher.inference.few_shot import LABEL, Prompter, PromptTemplate, choose_shots
    from ingot.launcher.loading.language_model import load_for_inference
    from ingot.launcher.runtime.device import open_device

    template = PromptTemplate(options.template)
    columns = [slot for slot in template.slots if slot != LABEL]
    needed = [*columns, *([options.label] if options.label else [])]

    def read(path: str) -> tuple[list[dict], list[str], list[str]]:
        records = read_records(path, needed)
        values = [{column: text_of(r.values, column, r.where) for column in columns} for r in records]
        true = [class_name(record, options.label) for record in records] if options.label else []
        for record, name in zip(records, true, strict=False):
            number_of(name, list(words), record.where)
        return values, true, [record.where for record in records]

    texts, true, where = read(options.input)
    if options.limit:
        texts, true, where = (part[: options.limit] for part in (texts, true, where))
    shots = []
    if options.shots:
        shown, shown_labels, _ = read(options.examples)
        shots = [(shown[n], shown_labels[n]) for n in choose_shots(shown_labels, options.shots, options.seed)]
    model, tokenizer = load_for_inference(options.checkpoint, options.tokenizer, open_device(options.device))
    prompter = Prompter(
        model, tokenizer, template, words, shots, separator=options.separator, mean=options.normalise == "mean"
    )
    if options.calibrate:
        prompter.calibrate(columns)
    names = list(words)
    predicted = []
    with nullcontext(sys.stdout) if options.output is None else open(options.output, "w", encoding="utf-8") as file:
        for place, scores in zip(where, prompter.scores(texts), strict=True):
            predicted.append(int(scores.argmax()))
            line = {"where": place, "predicted": names[predicted[-1]], "scores": [round(float(s), 4) for s in scores]}
            print(json.dumps(line, ensure_ascii=False), file=file)
    if prompter.shortened:
        print(f"{prompter.shortened} prompts were longer than the model and lost their beginning", file=sys.stderr)
    if true:
        numbers = [names.index(name) for name in true]
        print(json.dumps(classification_scores(predicted, numbers, names)))
        print(classification_report(predicted, numbers, names))


def main(argv: list[str]) -> int:
    with bad_input():
        options = parse(ClassifyOptions, spread_lists(argv, ("labels",)), __doc__)
        classify(options)
    return DONE


if __name__ == "__main__":
    run_main(main)
