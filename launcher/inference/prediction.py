"""Applying a fine-tuned model to a file or to one example: what launcher/predict.py does."""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.tasks.examples import Example
from ingot.data.tasks.instruction import end_ids
from ingot.data.tasks.task_data import TaskData
from ingot.launcher.config.finetune import PROMPT_METHODS
from ingot.launcher.config.predict import PredictOptions
from ingot.launcher.finetuning.evaluation import outputs_of
from ingot.launcher.finetuning.finetune_run import task_reader, task_settings
from ingot.launcher.inference.generation import decoder, room_of
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
        generates = found.kind.head is None  # then outputs are for scores only, and never part of a prompt
        data = found.kind.read(path, settings, found.tokenizer, labelled=options.score and not generates)
    if options.score:
        found.kind.truth(data)  # what is wrong with the labels is said before all is computed
    if data.num_truncated:
        became = "are read in several windows" if found.kind.has_windows else "lose their end"
        length = f"longer than task.max_length {settings.max_length}"
        print(f"note: {data.num_truncated:,} examples are {length}, and {became}", file=sys.stderr)
    if generates:
        data = _shortened(data, found, options.max_tokens)
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
    ends = end_ids(data.settings, found.tokenizer)
    sampling = Sampling(max_tokens=options.max_tokens, temperature=0.0, eos_ids=ends)
    prompts = [example.ids.tolist() for example in data.examples]
    where = [data.records[example.record_index].where for example in data.examples]
    limits = room_of(model.config, prompts, options.max_tokens, where)
    for first in range(0, len(prompts), PROMPTS_AT_ONCE):
        part = slice(first, first + PROMPTS_AT_ONCE)
        done = complete(model, prompts[part], sampling, decode=decoder(found.tokenizer), limits=limits[part])
        for place, completion in zip(where[part], done, strict=True):
            yield {"where": place, "predicted": completion.text, "finish": completion.finish_reason}


def _shortened(data: TaskData, found: Finetuned, max_tokens: int) -> TaskData:
    """Prompts that the model can read, with room for a token: longer ones lose their beginning, but for the token that
    begins a text, until there is room for `max_tokens`, or for half of the positions. It says on stderr which.

    Raises:
        ValueError: a prompt is too long, and task.overlong is refuse.
    """
    method = found.config.method
    learned = method.num_virtual_tokens if method.kind in PROMPT_METHODS else 0
    positions = found.model.config.max_position_embeddings - learned
    room = positions - 1
    long = [example for example in data.examples if len(example.ids) > room]
    if not long:
        return data
    where = [f"{data.records[example.record_index].where} ({len(example.ids)} tokens)" for example in long]
    shown = ", ".join(where[:5]) + (f" and {len(where) - 5} more" if len(where) > 5 else "")
    if data.settings.refuse_overlong:
        raise ValueError(f"prompts are longer than the {room} tokens that the model can read: {shown}; shorten them")
    print(
        f"note: {len(long)} of {len(data.examples)} prompts are longer than the {room} tokens that the model can read, "
        f"and lose their beginning: {shown}",
        file=sys.stderr,
    )
    kept, bos_id = positions - min(max_tokens, positions // 2), found.tokenizer.bos_id
    cut = [_last_tokens(each, kept, bos_id) if len(each.ids) > room else each for each in data.examples]
    return replace(data, examples=cut)


def _last_tokens(example: Example, room: int, bos_id: int | None) -> Example:
    head = example.ids[:1] if example.ids[0] == bos_id else example.ids[:0]
    ids = np.concatenate([head, example.ids[len(example.ids) - room + len(head) :]])
    return replace(
        example, ids=ids, types=np.zeros_like(ids), target=np.full_like(ids, IGNORE_INDEX), documents=(room,)
    )


def _print_scores(found: Finetuned, data: TaskData, predicted: list) -> None:
    true = found.kind.truth(data)
    scores = found.kind.scores(predicted, true, found.labels)
    print(json.dumps({**scores, "model_bytes": size_of(found.model)}))
    if table := found.kind.report(predicted, true, found.labels):
        print(table)
