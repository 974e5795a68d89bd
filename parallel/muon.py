"""Muon for the matrices within blocks and AdamW for the other parameters, as one optimizer.

Muon (Jordan et al. 2024; scaled as in Liu et al. 2025, arXiv 2502.16982) makes the momentum of a matrix orthogonal. It
needs the whole matrix, so it works neither with tensor parallelism nor with ZeRO's flat fragments.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Sequence

import torch
from torch import nn

from ingot.parallel.optimizer import adamw, parameter_groups


def names_matching(names: Collection[str], patterns: Sequence[str]) -> frozenset[str]:
    """The names that match one of the patterns. `*` in a pattern stands for one part between dots.

    Raises:
        ValueError: a pattern matches none.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matches = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
        found = {name for name in names if matches.fullmatch(name)}
        if not found:
            raise ValueError(
                f"optimizer.muon_matrices has {pattern!r}, and no matrix of this model has such a name; names are like "
                f"{', '.join(sorted(names)[:3])}"
            )
        chosen |= found
    return frozenset(chosen)


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and AdamW as one optimizer.

    Both have the same learning rate: Muon's updates are scaled to the root mean square of AdamW's.

    Args:
        chosen: names of the matrices that Muon trains.
        decaying: names of the parameters with weight decay.
    """

    def __init__(
        self,
        module: nn.Module,
        chosen: Container[str],
        decaying: Container[str],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
        weight_decay: float,
    ):
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        rest = nn.ParameterDict({name.replace(".", "/"): p for name, p in named if name not in chosen})
        decaying = {name.replace(".", "/") for name, _ in named if name in decaying}
        muon = torch.optim.Muon(
            [p for name, p in named if name in chosen],
            lr=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        adam = adamw(parameter_groups(rest, weight_decay, decaying), learning_rate=learning_rate, betas=betas, eps=eps)
        self._parts = (muon, adam)
        groups = [group for part in self._parts for group in part.param_groups]
        super().__init__([{"params": group["params"]} for group in groups], defaults={})
        self.param_groups = groups  # the same objects: a learning rate that is set here is set in both optimizers
        self.state = defaultdict(dict)
        for part in self._parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # torch's has overloads
        assert closure is None, "the engines compute the gradients before the step"
        for part in self._parts:
            part.step()
