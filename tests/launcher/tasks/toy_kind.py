"""A kind of task of its own: whether a text has an even number of words. What its file has is all that a kind needs."""

from ingot.data.tasks.sequence_classification import read_classification
from ingot.launcher.tasks.task_kind import Head, TaskKind


class Parity(TaskKind):
    name = "parity"
    summary = "whether a text has an even number of words"
    text_columns = ("sentence",)
    metrics = ("errors", "loss")
    lower_is_better = ("loss", "errors")
    head = Head("sequence", "classes")
    has_label_set = True

    def read(self, path, settings, tokenizer, *, labelled=True):
        return read_classification(path, settings, tokenizer, labelled=labelled)

    def prediction(self, record, windows, data):
        ((_, logits),) = windows
        return data.labels[int(logits.argmax())]

    def truth(self, data):
        return [data.labels[int(example.target)] for example in data.examples]

    def scores(self, predicted, true, labels):
        return {"errors": float(sum(ours != theirs for ours, theirs in zip(predicted, true, strict=True)))}
