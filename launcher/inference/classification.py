"""Classification of the texts of a file, without training: the work of launcher/classify.py."""

import json
import sys
from contextlib import nullcontext

from ingot.data.tasks.encoding import text_of
from ingot.data.tasks.labels import class_name, number_of
from ingot.data.tasks.records import read_records
from ingot.launcher.config.classify import ClassifyOptions
from ingot.launcher.inference.few_shot import LABEL, FewShotClassifier, PromptTemplate, choose_shots
from ingot.launcher.loading.language_model import load_for_inference
from ingot.launcher.runtime.device import open_device
from ingot.launcher.tasks.metrics import classification_report, classification_scores


def classify(options: ClassifyOptions) -> None:
    """Writes the prediction for each text, and the scores if the labels are known.

    Raises:
        ValueError: a file, the template or a label does not fit.
        OSError: a file cannot be read or written.
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
        texts, true, where = texts[: options.limit], true[: options.limit], where[: options.limit]
    shots = []
    if options.shots:
        assert options.examples is not None  # ClassifyOptions.check
        examples, labels, _ = read(options.examples)
        shots = [(examples[n], labels[n]) for n in choose_shots(labels, options.shots, options.seed)]
    model, tokenizer = load_for_inference(options.checkpoint, options.tokenizer, open_device(options.device))
    classifier = FewShotClassifier(
        model, tokenizer, template, words, shots, separator=options.separator, mean=options.normalize == "mean"
    )
    if options.calibrate:
        classifier.calibrate(columns)
    names = list(words)
    predicted: list[int] = []
    with nullcontext(sys.stdout) if options.output is None else open(options.output, "w", encoding="utf-8") as file:
        for position, scores in zip(where, classifier.scores(texts), strict=True):
            predicted.append(int(scores.argmax()))
            line = {
                "where": position,
                "predicted": names[predicted[-1]],
                "scores": [round(float(s), 4) for s in scores],
            }
            print(json.dumps(line, ensure_ascii=False), file=file)
    if classifier.num_truncated:
        print(
            f"{classifier.num_truncated} prompts were longer than the model's positions; their beginning was left out",
            file=sys.stderr,
        )
    if true:
        numbers = [names.index(name) for name in true]
        print(json.dumps(classification_scores(predicted, numbers, names)))
        print(classification_report(predicted, numbers, names))
