"""Applying a fine-tuned model to a file or to lines of text: what launcher/predict.py does."""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ingot.data.tasks.tasks import read_task
from ingot.launcher.config.predict import PredictOptions
from ingot.launcher.finetuning.evaluation import outputs_of
from ingot.launcher.finetuning.finetune_run import reader_of, task_settings
from ingot.launcher.finetuning.metrics import text_scores
from ingot.launcher.finetuning.predictions import predictions, report, scores, truth
from ingot.launcher.inference.generation import decoder
from ingot.launcher.loading.finetuned_model import open_finetuned, quantize, size_of
from ingot.launcher.loading.peft_methods import with_learned_tokens
from ingot.launcher.runtime.device import open_device
from ingot.model.generation.generate import Sampling, complete


def predict(options: PredictOptions) -> None:
    """Writes the predictions.

    Raises:
        ValueError, OSError: no such checkpoint, or an input that does not fit the task.
    """

    device = open_device(options.device)
    found = open_finetuned(options.checkpoint, device, options.tokenizer)
    if options.int8 != "none":
        quantize(found.model, options.int8)
    settings = replace(task_settings(found.config), labels=found.labels or None)
    with tempfile.TemporaryDirectory() as folder:
        path = options.input
        if path is None:
            path = str(_one_example(Path(folder), found, settings.texts, options.text))
        data = read_task(path, settings, found.tokenizer, labelled=options.score)
    template = found.tokenizer.template(pair=False)
    data = with_learned_tokens(found.config.method, data, found.model.config, template)
    lines = list(_lines(options, found, data, device))
    shown = options.output is not None or not options.score
    if shown:
        with nullcontext(sys.stdout) if options.output is None else open(options.output, "w", encoding="utf-8") as file:
            for line in lines:
                print(json.dumps(line, ensure_ascii=False), file=file)
    if options.score:
        _print_scores(found, data, [line["predicted"] for line in lines])


def _one_example(folder: Path, found, columns: list[str], texts: list[str]) -> Path:
    kind = found.config.task.kind
    if kind == "tagging":
        values = {columns[0]: " ".join(texts).split()}
    elif kind == "choice":
        values = {columns[0]: texts[0], columns[1]: texts[1:]}
        if len(columns) > 2:
            values = dict(zip(columns, texts, strict=False))
    elif kind == "generation":
        chat = len(columns) == 1
        values = {columns[0]: [{"role": "user", "content": texts[0]}] if chat else texts[0]}
    else:
        if len(texts) != len(columns):
            raise ValueError(
                f"text has {len(texts)} values, and the task reads {', '.join(columns)}; give one for each"
            )
        values = dict(zip(columns, texts, strict=True))
    path = folder / "text.jsonl"
    path.write_text(json.dumps(values))
    return path


def _lines(options: PredictOptions, found, data, device) -> Iterator[dict]:

    kind = found.config.task.kind
    if kind == "generation":
        yield from _generated(options, found, data)
        return
    micro_tokens = max([options.micro_tokens, *(len(example.ids) for example in data.examples)])
    config = replace(found.config, batch=replace(found.config.batch, micro_tokens=micro_tokens))
    reader = reader_of(config, data, found.model.config, None, shuffle=False)
    with torch.inference_mode():
        outputs, _ = outputs_of(lambda inputs: found.model(**inputs), reader, kind, device)
    predicted = predictions(kind, data, outputs, found.labels, found.config.task.max_answer_tokens)
    for number, (source, value) in enumerate(zip(data.sources, predicted, strict=True)):
        line = {"where": source.where, "predicted": value}
        if options.probabilities and kind in ("classification", "choice", "multi_label"):
            logits = outputs[number].astype(np.float64)
            if kind == "multi_label":
                shares = 1 / (1 + np.exp(-logits))
            else:
                shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            rounded = [round(float(share), 6) for share in shares]
            line["probabilities"] = rounded if kind == "choice" else dict(zip(found.labels, rounded, strict=True))
        yield line


def _generated(options: PredictOptions, found, data) -> Iterator[dict]:

    end = found.tokenizer.eos_id
    for first in range(0, len(data.examples), 16):
        part = data.examples[first : first + 16]
        prompts = [example.ids[: _prompt_length(example)].tolist() for example in part]
        room = found.model.config.max_position_embeddings - max(map(len, prompts))
        most = max(1, min(options.max_tokens, room))
        sampling = Sampling(max_tokens=most, temperature=0.0, eos_ids=() if end is None else (end,))
        done = complete(found.model, prompts, sampling, decode=decoder(found.tokenizer))
        for example, completion in zip(part, done, strict=True):
            yield {"where": data.sources[example.source].where, "predicted": completion.text}


def _prompt_length(example) -> int:
    """Tokens before the first that is learned; all where none is."""

    learned = np.flatnonzero(example.target != -100)
    return int(learned[0]) + 1 if len(learned) else len(example.ids)


def _print_scores(found, data, predicted: list) -> None:

    kind, labels = found.config.task.kind, found.labels
    if kind == "generation":
        columns = found.config.task.text_columns or ["input", "output"]
        if len(columns) == 1:
            true = [source.values[columns[0]][-1]["content"] for source in data.sources]
        else:
            true = [source.values[columns[1]] for source in data.sources]
        values = text_scores(predicted, true)
    else:
        true = truth(kind, data, labels)
        values = scores(kind, predicted, true, labels)
    print(json.dumps({**values, "model_bytes": size_of(found.model)}))
    if kind != "generation" and (table := report(kind, predicted, true, labels)):
        print(table)
