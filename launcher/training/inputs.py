"""Turns the arrays of a reader into the keyword arguments of a model."""

import numpy as np
import torch

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
    if device.type == "cuda":  # copies from pinned memory do not block the host
        batch = {key: tensor.pin_memory() for key, tensor in batch.items()}
    return {key: tensor.to(device, non_blocking=True) for key, tensor in batch.items()}
