"""Muon for the matrices within blocks, AdamW for the rest, as one optimizer.

Muon (Jordan et al. 2024; scaled as in Liu et al. 2025, arXiv 2502.16982) replaces the momentum of a whole matrix by an
orthogonal one. So it needs whole matrices: not those that tensor ranks share, nor ZeRO's flat fragments.
"""

import re
from collections import defaultdict
from collections.abc import Container, Sequence

import torch
from torch import nn

from ingot.parallel.optimizer import adamw, parameter_groups


def choose(names: Container[str], patterns: Sequence[str]) -> frozenset[str]:
    """Those of `names` that match a pattern, in which `*` stands for one part between dots.

    Raises:
        ValueError: a pattern matches none.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matches = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
        found = {name for name in names if matches.fullmatch(name)}
        if not found:
            raise ValueError(
                f"optimizer.muon_matrices has {pattern!r}, which is the name of no matrix of this model; names are "
                f"like {', '.join(sorted(names)[:3])}"
            )
        chosen |= found
    return frozenset(chosen)


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and AdamW over one state. Both have the same learning rate: Muon's updates are scaled to the
    root mean square of AdamW's.

    Args:
        chosen: names of the matrices that Muon takes.
        decaying: names of the parameters that decay.
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
        self.param_groups = groups  # the very same ones: a learning rate set here is set there
        self.state = defaultdict(dict)
        for part in self._parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for part in self._parts:
            part.step()
