"""Running a model over the examples of a task, and scoring it, on all ranks together."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ingot.data.tasks.reader import TaskReader
from ingot.data.tasks.task_data import TaskData
from ingot.launcher.tasks.task_kind import TaskKind
from ingot.launcher.training.inputs import to_device
from ingot.model.finetuning.task_model import TaskConfig, label_loss, span_loss
from ingot.parallel.engines.engine import Batch, Engine

Forward = Callable[[Batch], torch.Tensor]


def outputs_of(
    forward: Forward, reader: TaskReader, kind: TaskKind, device: torch.device, task: TaskConfig | None = None
) -> tuple[dict[int, np.ndarray], torch.Tensor]:
    """This rank's outputs by the index of the example, and the sum of their losses (fp64, on the device).

    Args:
        forward: from a micro-batch without targets to logits.
        task: the head of the model, for the loss; None computes no loss.
    """
    found: dict[int, np.ndarray] = {}
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    for micro, indices in reader.batches():
        inputs = to_device(micro, device)
        targets = inputs.pop("labels")
        logits = forward(inputs).float()
        if task is not None:
            loss_sum += _loss(logits, targets, inputs["cu_seqlens"], task)
        examples = [reader.examples[index] for index in indices]
        found.update(zip(indices, kind.outputs(logits.cpu().numpy(), examples), strict=True))
    return found, loss_sum


def _loss(logits: torch.Tensor, targets: object, cu_seqlens: object, task: TaskConfig) -> torch.Tensor:
    assert isinstance(targets, torch.Tensor)
    assert isinstance(cu_seqlens, torch.Tensor)
    if task.kind == "span":
        return span_loss(logits, targets, cu_seqlens, None)
    return label_loss(logits, targets, task.problem, 0.0)


def evaluate(engine: Engine, reader: TaskReader, data: TaskData, kind: TaskKind) -> tuple[dict[str, float], list[Any]]:
    """Loss and scores of the task, and, on rank 0, the predictions. Each rank calls it."""
    mesh = engine.mesh
    outputs: dict[int, np.ndarray] = {}
    if kind.head is None:
        loss_sum = torch.zeros((), dtype=torch.float64, device=mesh.device)
        for micro, _ in reader.batches():
            loss_sum += engine.forward(to_device(micro, mesh.device))
    else:
        task = engine.module.task
        assert isinstance(task, TaskConfig)
        outputs, loss_sum = outputs_of(engine.forward, reader, kind, mesh.device, task)
    dist.all_reduce(loss_sum, group=mesh.data_group)
    num_targets = sum(example.num_targets for example in data.examples)
    loss = float(loss_sum) / max(1, num_targets)
    scores = {"loss": loss, **kind.scores_of_loss(loss)}
    if kind.head is None:
        return scores, []
    predicted: list[Any] = []
    gathered: list | None = [None] * dist.get_world_size() if mesh.is_main else None
    dist.gather_object(outputs, gathered)
    result: list[dict[str, float]] = [{}]
    if gathered is not None:
        predicted = kind.predictions(data, {index: output for part in gathered for index, output in part.items()})
        result = [kind.scores(predicted, kind.truth(data), data.labels)]
    dist.broadcast_object_list(result)
    return scores | result[0], predicted
