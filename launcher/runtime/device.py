"""Where a command computes, and in which type, from the user's words."""

import platform

import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def open_device(name: str) -> torch.device:
    """The device of a name such as cpu, cuda or cuda:1; it is tried out.

    Raises:
        ValueError: no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's errors go on for lines about its own insides
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); the CPU's name is cpu") from error
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for matrix products in bf16. A CPU without them takes longer than in fp32:
    twice as long with AVX-512 alone, twenty times with AVX2."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def in_dtype(model: nn.Module, name: str) -> nn.Module:
    """The model with its parameters in float32 or bfloat16."""
    return model.to(DTYPES[name])
