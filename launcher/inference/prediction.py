"""Applying a fine-tuned model to a file or to one example: what launcher/predict.py does."""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.tasks.examples import Example
from ingot.data.tasks.task_data import TaskData
from ingot.launcher.config.predict import PredictOptions
from ingot.launcher.finetuning.evaluation import outputs_of
from ingot.launcher.finetuning.finetune_run import task_reader, task_settings
from ingot.launcher.inference.generation import decoder
from ingot.launcher.loading.finetuned_model import Finetuned, open_finetuned, quantize, size_of
from ingot.launcher.loading.peft_methods import with_virtual_tokens
from ingot.launcher.runtime.device import open_device
from ingot.model.generation.generate import Sampling, complete
from ingot.model.transformer import LanguageModel

PROMPTS_AT_ONCE = 16
"""Texts that are generated together."""


def predict(options: PredictOptions) -> None:
    """Writes the predictions.

    Raises:
        ValueError, OSError: there is no such checkpoint, or the input does not fit the task.
    """
    device = open_device(options.device)
    found = open_finetuned(options.checkpoint, device, options.tokenizer)
    if options.int8 != "none":
        quantize(found.model, options.int8)
    settings = replace(task_settings(found.config), labels=found.labels or None)
    with tempfile.TemporaryDirectory() as folder:
        path = options.input
        if path is None:
            path = str(Path(folder) / "text.jsonl")
            Path(path).write_text(json.dumps(found.kind.record_of(options.text, settings.text_columns)))
        data = found.kind.read(path, settings, found.tokenizer, labelled=options.score)
    template = found.tokenizer.template(pair=False)
    data = with_virtual_tokens(found.config.method, data, found.model.config, template)
    lines = list(_lines(options, found, data, device))
    if options.output is not None or not options.score:
        with nullcontext(sys.stdout) if options.output is None else open(options.output, "w", encoding="utf-8") as file:
            for line in lines:
                print(json.dumps(line, ensure_ascii=False), file=file)
    if options.score:
        _print_scores(found, data, [line["predicted"] for line in lines])


def _lines(options: PredictOptions, found: Finetuned, data: TaskData, device: torch.device) -> Iterator[dict]:
    """A line for each record: where it is, the prediction, and the probabilities if there are any."""
    if isinstance(found.model, LanguageModel):
        yield from _generated(options, found, data, found.model)
        return
    micro_tokens = max(options.micro_tokens, max(len(example.ids) for example in data.examples))
    config = replace(found.config, batch=replace(found.config.batch, micro_tokens=micro_tokens))
    reader = task_reader(config, data, found.model.config, None, shuffle=False)
    with torch.inference_mode():
        outputs, _ = outputs_of(lambda inputs: found.model(**inputs), reader, found.kind, device)
    predicted = found.kind.predictions(data, outputs)
    for number, (record, value) in enumerate(zip(data.records, predicted, strict=True)):
        line = {"where": record.where, "predicted": value}
        if options.probabilities:
            probabilities = found.kind.probabilities(outputs[number], found.labels)
            if probabilities is not None:
                line["probabilities"] = probabilities
        yield line


def _generated(options: PredictOptions, found: Finetuned, data: TaskData, model: LanguageModel) -> Iterator[dict]:
    end = found.tokenizer.eos_id
    for first in range(0, len(data.examples), PROMPTS_AT_ONCE):
        part = data.examples[first : first + PROMPTS_AT_ONCE]
        prompts = [example.ids[: _prompt_length(example)].tolist() for example in part]
        room = model.config.max_position_embeddings - max(map(len, prompts))
        max_tokens = max(1, min(options.max_tokens, room))
        sampling = Sampling(max_tokens=max_tokens, temperature=0.0, eos_ids=() if end is None else (end,))
        done = complete(model, prompts, sampling, decode=decoder(found.tokenizer))
        for example, completion in zip(part, done, strict=True):
            yield {"where": data.records[example.record_index].where, "predicted": completion.text}


def _prompt_length(example: Example) -> int:
    """Number of tokens before the first one that is learned; of all tokens if none is."""
    learned = (example.target != IGNORE_INDEX).nonzero()[0]
    return int(learned[0]) + 1 if len(learned) else len(example.ids)


def _print_scores(found: Finetuned, data: TaskData, predicted: list) -> None:
    true = found.kind.truth(data)
    scores = found.kind.scores(predicted, true, found.labels)
    print(json.dumps({**scores, "model_bytes": size_of(found.model)}))
    if table := found.kind.report(predicted, true, found.labels):
        print(table)
