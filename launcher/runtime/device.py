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


def float8_problem(device: torch.device, precision: str) -> str:
    """Why a device cannot compute in float8 (`parallel.float8`); empty if it can. A CPU can, but has no instructions.

    Args:
        precision: `bf16` or `fp32`.
    """
    if device.type != "cuda":
        return ""
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if torch.version.hip is not None or capability < (8, 9):
        needed = "an NVIDIA GPU of compute capability 8.9 or more (Ada, Hopper, Blackwell)"
        return f"parallel.float8 needs {needed}, and this is {name}; set it to none"
    if precision != "bf16":
        return f"parallel.float8 needs parallel.precision bf16 on a GPU, which is {precision}; set it to bf16"
    return ""


def in_dtype(model: Module, name: str) -> Module:
    """Converts the parameters of a model to `float32` or `bfloat16`, in place."""
    return model.to(DTYPES[name])
