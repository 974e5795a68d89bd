"""Running a task model over examples, and scoring it, on all ranks together."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ingot.data.tasks.reader import TaskReader
from ingot.data.tasks.tasks import TaskData
from ingot.launcher.finetuning.predictions import output_of, predictions, scores, truth
from ingot.launcher.training.inputs import to_device
from ingot.model.finetuning.task_model import TaskConfig, label_loss, span_loss
from ingot.parallel.engines.engine import Batch, Engine

Forward = Callable[[Batch], torch.Tensor]


def outputs_of(
    forward: Forward, reader: TaskReader, kind: str, device: torch.device, task: TaskConfig | None = None
) -> tuple[dict[int, np.ndarray], torch.Tensor]:
    """This rank's outputs by the number of the example, and the sum of their losses (fp64 on the device).

    Args:
        forward: a micro-batch without targets to logits.
        task: of the model, for the loss; None without.
    """
    found: dict[int, np.ndarray] = {}
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    for micro, numbers in reader.batches():
        inputs = to_device(micro, device)
        targets = inputs.pop("labels")
        logits = forward(inputs).float()
        if task is not None:
            if task.kind == "span":
                loss_sum += span_loss(logits, targets, inputs["cu_seqlens"], None)
            else:
                loss_sum += label_loss(logits, targets, task.problem, 0.0)
        values = logits[0].cpu().numpy() if kind in ("tagging", "answers") else logits.cpu().numpy()
        at = 0
        for number in numbers:
            example = reader.examples[number]
            if kind in ("tagging", "answers"):
                part, at = values[at : at + len(example.ids)], at + len(example.ids)
            elif kind == "choice":
                part, at = values[at : at + len(example.documents), 0], at + len(example.documents)
            else:
                part, at = values[at], at + 1
            found[number] = output_of(kind, example, part)
    return found, loss_sum


def evaluate(
    engine: Engine, reader: TaskReader, data: TaskData, kind: str, max_answer_tokens: int
) -> tuple[dict[str, float], list[Any]]:
    """Loss and scores of the task, and, on rank 0, the predictions. Each rank calls it."""
    mesh, model = engine.mesh, engine.module
    predicted: list[Any] = []
    if kind == "generation":
        loss_sum = torch.zeros((), dtype=torch.float64, device=mesh.device)
        for micro, _ in reader.batches():
            loss_sum += engine.forward(to_device(micro, mesh.device))
        outputs = {}
    else:
        outputs, loss_sum = outputs_of(engine.forward, reader, kind, mesh.device, model.task)
    dist.all_reduce(loss_sum, group=mesh.data_group)
    num_targets = sum(example.num_targets for example in data.examples)
    found: dict[str, float] = {"loss": float(loss_sum) / max(1, num_targets)}
    if kind == "generation":
        return found | {"perplexity": float(np.exp(min(found["loss"], 700.0)))}, []
    gathered: list | None = [None] * dist.get_world_size() if mesh.is_main else None
    dist.gather_object(outputs, gathered)
    result = [None]
    if gathered is not None:
        labels = data.labels
        together = {number: output for part in gathered for number, output in part.items()}
        predicted = predictions(kind, data, together, labels, max_answer_tokens)
        result = [scores(kind, predicted, truth(kind, data, labels), labels)]
    dist.broadcast_object_list(result)
    return found | result[0], predicted
