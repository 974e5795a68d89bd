"""Rotary position embeddings, and the methods that scale them beyond the training length.

Legend: B batch, T time, H heads, E head dim, e = E/2 frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ingot.model.config import RopeScaling

Rotation = tuple[Tensor, Tensor]


def rotation_of(
    positions_BT: Tensor,
    head_size: int,
    base: float,
    dtype: torch.dtype = torch.float32,
    scaling: RopeScaling | None = None,
) -> Rotation:
    """Cosines and signed sines for `rotate`, (B, T, 1, E) each (arXiv 2104.09864, half-split as in Llama).

    The frequencies are computed here, in fp32, and are not buffers of a module, so a cast to bf16 or `to_empty` cannot
    change them. Only the tables are rounded to `dtype`.
    """
    factor = 1.0
    if scaling is None:
        frequencies_e = default_frequencies(head_size, base, positions_BT.device)
    else:
        frequencies_e, factor = scaled_frequencies(positions_BT, head_size, base, scaling)
    angles_BT1e = positions_BT.float()[:, :, None, None] * frequencies_e
    cos, sin = (angles_BT1e.cos() * factor).to(dtype), (angles_BT1e.sin() * factor).to(dtype)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x_BTHE: Tensor, rotation: Rotation) -> Tensor:
    """Rotates the pairs (x[i], x[i + E/2]) of each head by the angle of their position, (B, T, H, E)."""
    cos_BT1E, sin_BT1E = rotation
    swapped_BTHE = x_BTHE.roll(x_BTHE.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_BTHE * cos_BT1E, swapped_BTHE, sin_BT1E)


def default_frequencies(head_size: int, base: float, device: torch.device) -> Tensor:
    """base^(-2 i / E) radians per position, fp32 (e,)."""
    pairs_e = torch.arange(0, head_size, 2, dtype=torch.float32, device=device)
    return 1.0 / base ** (pairs_e / head_size)


def scaled_frequencies(positions_BT: Tensor, head_size: int, base: float, scaling: RopeScaling) -> tuple[Tensor, float]:
    """Scaled frequencies, fp32 (e,), and the factor of cosines and sines.

    `dynamic` and `longrope` depend on the largest position, so the host waits for the device.
    """
    device = positions_BT.device
    if scaling.rope_type == "dynamic":
        return _dynamic(int(positions_BT.max()) + 1, head_size, base, scaling, device), 1.0
    frequencies_e = default_frequencies(head_size, base, device)
    if scaling.rope_type == "linear":  # arXiv 2306.15595
        return frequencies_e / scaling.factor, 1.0
    if scaling.rope_type == "llama3":
        return _llama3(frequencies_e, scaling), 1.0
    if scaling.rope_type == "yarn":
        return _yarn(frequencies_e, head_size, base, scaling)
    return _longrope(frequencies_e, int(positions_BT.max()) + 1, scaling)


def _dynamic(length: int, head_size: int, base: float, scaling: RopeScaling, device: torch.device) -> Tensor:
    """NTK-aware interpolation whose base grows once a sequence exceeds the original length (arXiv 2309.00071, 3.1)."""
    original = _original_length(scaling)
    growth = scaling.factor * max(length, original) / original - (scaling.factor - 1)
    return default_frequencies(head_size, base * growth ** (head_size / (head_size - 2)), device)


def _llama3(frequencies_e: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: long wavelengths are scaled, short ones are not, and those between are interpolated."""
    rotations_e = _original_length(scaling) * frequencies_e / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    unscaled_e = ((rotations_e - low) / (high - low)).clamp(0, 1)
    return frequencies_e * (unscaled_e + (1 - unscaled_e) / scaling.factor)


def _yarn(frequencies_e: Tensor, head_size: int, base: float, scaling: RopeScaling) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071): interpolation by the number of rotations over the original length."""

    def index_of(rotations: float) -> float:
        """The (fractional) index of the frequency with this number of rotations over the original length."""
        return head_size * math.log(_original_length(scaling) / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    index_e = torch.arange(head_size // 2, dtype=torch.float32, device=frequencies_e.device)
    scaled_e = ((index_e - low) / max(high - low, 1e-3)).clamp(0, 1)
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
    return frequencies_e * (1 - scaled_e) + frequencies_e / scaling.factor * scaled_e, factor


def _longrope(frequencies_e: Tensor, length: int, scaling: RopeScaling) -> tuple[Tensor, float]:
    """LongRoPE (arXiv 2402.13753): a divisor for each frequency, one set up to the original length, one beyond it."""
    original = _original_length(scaling)
    divisors = scaling.long_factor if length > original else scaling.short_factor
    factor = scaling.attention_factor
    if factor is None:
        growth = math.log(scaling.factor) / math.log(original)
        factor = math.sqrt(1 + growth) if scaling.factor > 1 else 1.0
    return frequencies_e / frequencies_e.new_tensor(divisors), factor


def _original_length(scaling: RopeScaling) -> int:
    assert scaling.original_max_position_embeddings is not None  # `ModelConfig.validate` requires it
    return scaling.original_max_position_embeddings
