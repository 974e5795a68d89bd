"""Optimizer and learning rate: AdamW with its parameter groups, and schedules as pure functions of the step."""

import math
from collections.abc import Callable, Container

import torch


def matrices(module: torch.nn.Module) -> frozenset[str]:
    """Names of the parameters of two dims, matrices and tables, to be asked before an engine flattens them."""
    return frozenset(name for name, parameter in module.named_parameters() if parameter.ndim >= 2)


def parameter_groups(
    module: torch.nn.Module,
    weight_decay: float,
    decaying: Container[str],
    pace_of: Callable[[str], tuple[float, int]] = lambda name: (1.0, 1),
) -> list[dict]:
    """Groups of the parameters that learn: those with the names `decaying` (matrices and tables) decay; norms and
    biases do not.

    Args:
        pace_of: of a parameter's name the factor of its learning rate, and the first step at which it learns.
    """
    groups: dict[tuple, dict] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            scale, first = pace_of(name)
            decay = weight_decay if name in decaying else 0.0
            empty = {"params": [], "weight_decay": decay, "lr_scale": scale, "first_step": first}
            groups.setdefault((name not in decaying, scale, first), empty)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float, step: int | None) -> None:
    """Gives each group its own, which is 0 before its first step. `step` None: all groups learn."""
    for group in optimizer.param_groups:
        learns = step is None or step >= group.get("first_step", 1)
        group["lr"] = learning_rate * group.get("lr_scale", 1.0) if learns else 0.0


def adamw(groups: list[dict], *, learning_rate: float, betas: tuple[float, float], eps: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), the fused kernel, which torch has for CPU and CUDA."""
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=True)


def create_state(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor]) -> None:
    """Makes the optimizer's state before its first step, so that a checkpoint has something to be loaded into."""
    muon = {p for group in optimizer.param_groups if "momentum" in group for p in group["params"]}
    for parameter in parameters:
        if parameter in muon:
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
        else:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Tells each parameter how many steps it has seen; Adam's bias correction depends on it."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(step)


def learning_rate_at(
    step: int,
    *,
    peak: float,
    schedule: str,
    warmup_steps: int,
    lr_decay_steps: int,
    min_lr_ratio: float,
    lr_decay_ratio: float,
) -> float:
    """Learning rate of optimizer step `step`, counted from 1.

    Linear warm-up over `warmup_steps`, then `constant`, `inverse_sqrt` (peak * sqrt(warm-up steps / step), Vaswani et
    al. 2017), `cosine` (Loshchilov & Hutter 2017), `linear`, or `wsd` (constant, then a decay as 1 - sqrt over the last
    `lr_decay_ratio` of the schedule, Haegele et al. 2024), the last three down to `min_lr_ratio` of the peak at
    `lr_decay_steps`, where it stays.
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant":
        return peak
    if schedule == "inverse_sqrt":
        return peak * math.sqrt(max(1, warmup_steps) / step)
    start = warmup_steps
    if schedule == "wsd":
        start = max(warmup_steps, lr_decay_steps - round(lr_decay_ratio * lr_decay_steps))
    done = min(1.0, max(0.0, (step - start) / max(1, lr_decay_steps - start)))
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "wsd": 1 - math.sqrt(done)}[schedule]
    return peak * (min_lr_ratio + (1 - min_lr_ratio) * shape)
