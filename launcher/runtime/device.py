"""The device and the type in which a command computes, from the user's options."""

from typing import TypeVar

import torch
from torch import nn

from ingot.parallel.torch_compat import cpu_has_bf16_instructions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Module = TypeVar("Module", bound=nn.Module)


def open_device(name: str) -> torch.device:
    """The device with this name, such as cpu, cuda or cuda:1. A tensor is made on it, to see that it works.

    Raises:
        ValueError: this machine has no such device.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch adds lines about its own code
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"device {name!r} cannot be used here ({reason}); use cpu, or cuda on a machine with a GPU"
        ) from error
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for matrix products in bf16.

    A CPU without them is slower in bf16 than in fp32: half as fast with AVX-512 without bf16, a twentieth with AVX2.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_has_bf16_instructions()


def in_dtype(model: Module, name: str) -> Module:
    """Converts the parameters of a model to `float32` or `bfloat16`, in place."""
    return model.to(DTYPES[name])
