"""Turns the arrays of a reader into the keyword arguments of a model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.parallel.engines.engine import Batch

NAMES = {
    "input_ids": "input_ids_BT",
    "labels": "labels_BT",
    "positions": "positions_BT",
    "cu_seqlens": "cu_seqlens",
    "token_types": "token_types_BT",
    "pair_labels": "pair_labels_B",
    "targets": "labels",
}


def to_device(micro_batch: dict[str, np.ndarray], device: torch.device) -> Batch:
    """The micro-batch of a reader as the keyword arguments of the model, on a device."""
    batch = {NAMES[key]: torch.from_numpy(array) for key, array in micro_batch.items()}
    if "labels" in micro_batch:
        # Searched here, so that the host waits for no device.
        batch["target_rows"] = torch.from_numpy(np.flatnonzero(micro_batch["labels"] != IGNORE_INDEX))
    if device.type == "cuda":  # copies from pinned memory do not block the host
        batch = {key: tensor.pin_memory() for key, tensor in batch.items()}
    return {key: tensor.to(device, non_blocking=True) for key, tensor in batch.items()}


@dataclass(frozen=True)
class DeviceInputs:
    """The arguments of the model for one micro-batch, which may still be on their way to the device.

    Attributes:
        ready: when they have arrived. None: they have.
    """

    arguments: Batch
    ready: torch.cuda.Event | None = None

    def wait(self) -> Batch:
        """The arguments, for kernels that are started from now on. The device waits for them, and not the host."""
        if self.ready is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.ready)
            for tensor in self.arguments.values():
                if isinstance(tensor, torch.Tensor):
                    tensor.record_stream(stream)  # they were allocated on the stream of the copies
        return self.arguments


class InputCopier:
    """Copies micro-batches to a device, on a CUDA device through pinned memory and on a stream of its own.

    It may be used by another thread than the one that computes.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, micro_batches: Sequence[dict[str, np.ndarray]]) -> list[DeviceInputs]:
        """Starts the copies."""
        if self._stream is None:
            return [DeviceInputs(to_device(micro_batch, self.device)) for micro_batch in micro_batches]
        inputs = []
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            for micro_batch in micro_batches:
                arguments = to_device(micro_batch, self.device)
                inputs.append(DeviceInputs(arguments, self._stream.record_event()))
        return inputs
