"""Classification of a file's texts without training: what launcher/classify.py does."""

import json
import sys
from contextlib import nullcontext

from ingot.data.tasks.encoding import text_of
from ingot.data.tasks.labels import class_name, number_of
from ingot.data.tasks.records import read_records
from ingot.launcher.config.classify import ClassifyOptions
from ingot.launcher.tasks.metrics import classification_report, classification_scores
from ingot.launcher.inference.few_shot import LABEL, Prompter, PromptTemplate, choose_shots
from ingot.launcher.loading.language_model import load_for_inference
from ingot.launcher.runtime.device import open_device


def classify(options: ClassifyOptions) -> None:
    """Writes the predictions, and the scores where the labels are known.

    Raises:
        ValueError, OSError: a file, template or label that does not fit.
    """
    words = options.words()

    template = PromptTemplate(options.template)
    columns = [slot for slot in template.slots if slot != LABEL]
    needed = [*columns, *([options.label_column] if options.label_column else [])]

    def read(path: str) -> tuple[list[dict], list[str], list[str]]:
        records = read_records(path, needed)
        values = [{column: text_of(r.values, column, r.where) for column in columns} for r in records]
        true = [class_name(record, options.label_column) for record in records] if options.label_column else []
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
        model, tokenizer, template, words, shots, separator=options.separator, mean=options.normalize == "mean"
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
