"""Documents of random lengths, as packed rows have them."""

import itertools

import torch
from torch import Tensor


def documents(rows: int, length: int, seed: int) -> list[int]:
    """Lengths of the documents of rows, with a mean of about a third of a row. No document crosses the end of a row."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(rows):
        cuts = sorted({0, length, *torch.randint(1, length, (2,), generator=generator).tolist()})
        found += [b - a for a, b in itertools.pairwise(cuts)]
    return found


def boundaries(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)
