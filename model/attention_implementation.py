"""The choice of an attention implementation by its name, for a whole model, and the kernels of flash attention.

The names are those of `attn_implementation` in transformers. torch has FlashAttention 2 built in; it calls
FlashAttention 3 (Hopper) or 4 (Hopper and Blackwell) instead where their packages are installed and activated. They
are 1.5 to 2 times faster there (arXiv 2407.08608).
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch

from ingot.model.attention.backends import Backend, Request, why_not
from ingot.model.config import ModelConfig
from ingot.model.transformer import Transformer

Implementation = Literal[
    "auto", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4"
]

BACKENDS: dict[Implementation, Backend | None] = {
    "auto": None,
    "sdpa": "sdpa",
    "flex_attention": "flex",
    "flash_attention_2": "varlen",
    "flash_attention_3": "varlen",
    "flash_attention_4": "varlen",
}

# Name in torch's registry, module that has the kernels, and major numbers of the compute capability.
_KERNELS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "flash_attention_4": ("FA4", "flash_attn.cute.interface", (9, 10)),
    "flash_attention_3": ("FA3", "flash_attn_interface", (9,)),
}


def use_implementation(model: Transformer, name: Implementation, device: torch.device, dtype: torch.dtype) -> None:
    """Makes all layers of a model use an implementation. For `auto` the fastest that supports each layout.

    The kernels of flash attention are chosen for the process: torch has one implementation at a time.

    Args:
        dtype: of the computation.

    Raises:
        ValueError: the device, the dtype, the dropout or the sizes of the model are not supported; nothing is changed.
    """
    config, backend = model.config, BACKENDS[name]
    if name in _KERNELS and (reason := _why_not_kernel(name, device)) is not None:
        raise ValueError(f"parallel.attn_implementation {name} cannot be used: {reason}; set it to auto")
    request = Request(
        batch=1,
        length=config.max_position_embeddings,
        causal=config.causal,
        device=device,
        past=0,
        window=None,
        cu_seqlens=None,
        padding_mask=None,
        dtype=dtype,
        head_size=config.head_size,
        dropout=config.attention_dropout,
    )
    if backend is not None and (reason := why_not(backend, request)) is not None:
        raise ValueError(f"parallel.attn_implementation {name} cannot be used: {reason}; set it to auto")
    kernel = name if name in _KERNELS else _fastest_kernel(device, dtype, config.attention_dropout)
    if name in ("auto", *_KERNELS) and kernel is not None:
        torch.nn.attention.activate_flash_attention_impl(_KERNELS[kernel][0])
    elif name == "flash_attention_2" and _active_kernel() is not None:
        torch.nn.attention.restore_flash_attention_impl()
    model.attention_backend = backend


def notes(config: ModelConfig, device: torch.device, packed: bool) -> list[str]:
    """What a run should say of its attention at the start.

    Args:
        packed: whether rows have several documents that must not see each other.
    """
    if device.type != "cuda":
        return []
    found = []
    dropout = config.attention_dropout
    if dropout and packed:
        found.append(
            f"flash attention has no dropout, and attention_dropout is {dropout}: each layer reads a dense mask of all "
            "pairs of tokens, which is slower and needs more memory; set model.attention_dropout to 0"
        )
    if _active_kernel() is not None:
        found.append(f"attention by {_active_kernel()} of torch's registry")
    return found


def _active_kernel() -> str | None:
    current = getattr(torch.nn.attention, "current_flash_attention_impl", None)  # newer than 2.11
    return None if current is None else current()


def _fastest_kernel(device: torch.device, dtype: torch.dtype, dropout: float) -> str | None:
    """The kernel that `auto` activates. FlashAttention 4 only on Blackwell: on Hopper 3 is the proven one."""
    if dropout or dtype not in (torch.bfloat16, torch.float16):
        return None
    usable = [name for name in _KERNELS if _why_not_kernel(name, device) is None]
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9:
        usable = [name for name in usable if name == "flash_attention_3"]
    return usable[0] if usable else None


def _why_not_kernel(name: str, device: torch.device) -> str | None:
    """Why torch cannot call a kernel here, or None."""
    registered, module, majors = _KERNELS[name]
    if device.type != "cuda" or torch.version.hip is not None:
        return "it needs an NVIDIA GPU"
    major = torch.cuda.get_device_capability(device)[0]
    if major not in majors:
        return f"it needs compute capability {' or '.join(f'{n}.x' for n in majors)}, and this GPU has {major}.x"
    from torch.nn import attention

    known = attention.list_flash_attention_impls() if hasattr(attention, "activate_flash_attention_impl") else []
    if registered not in known:
        return f"torch {torch.__version__} does not know it"
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        found = False
    return None if found else f"the module {module} is not installed"
