"""AdamW with its parameter groups, and learning rate schedules as pure functions of the step."""

import math
from collections.abc import Callable, Container

import torch

from ingot.parallel.low_precision_adamw import AdamWInBf16


def matrices(module: torch.nn.Module) -> frozenset[str]:
    """Names of the parameters with two or more dims. To be called before an engine flattens the parameters."""
    return frozenset(name for name, parameter in module.named_parameters() if parameter.ndim >= 2)


def parameter_groups(
    module: torch.nn.Module,
    weight_decay: float,
    decaying: Container[str],
    scale_and_start: Callable[[str], tuple[float, int]] = lambda name: (1.0, 1),
) -> list[dict]:
    """Groups of the trainable parameters for an optimizer.

    Args:
        weight_decay: of the parameters named in `decaying`. The others (norms and biases) have none.
        scale_and_start: a function of a parameter's name. It returns the factor of the parameter's learning rate, and
            the first step that changes the parameter.
    """
    groups: dict[tuple, dict] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            scale, first = scale_and_start(name)
            decay = weight_decay if name in decaying else 0.0
            empty = {"params": [], "weight_decay": decay, "lr_scale": scale, "first_step": first}
            groups.setdefault((name not in decaying, scale, first), empty)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float, step: int | None) -> None:
    """Sets the learning rate of each group: its factor times `learning_rate`, and 0 before its first step.

    Args:
        step: None means that all groups have begun.
    """
    for group in optimizer.param_groups:
        has_begun = step is None or step >= group.get("first_step", 1)
        group["lr"] = learning_rate * group.get("lr_scale", 1.0) if has_begun else 0.0


def adamw(
    groups: list[dict], *, learning_rate: float, betas: tuple[float, float], eps: float, state_dtype: str = "fp32"
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), with the fused kernel that torch has for CPU and CUDA.

    Args:
        state_dtype: of its two moments, `fp32` or `bf16`.
    """
    if state_dtype == "bf16":
        return AdamWInBf16(groups, learning_rate=learning_rate, betas=betas, eps=eps)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=True)


def create_state(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor]) -> None:
    """Makes the optimizer's state before its first step, so that a checkpoint can be loaded into it."""
    dtype = getattr(optimizer, "state_dtype", None)  # None: that of the parameter
    muon = {p for group in optimizer.param_groups if "momentum" in group for p in group["params"]}
    for parameter in parameters:
        if parameter in muon:
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
        else:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, dtype=dtype),
                "exp_avg_sq": torch.zeros_like(parameter, dtype=dtype),
            }


def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Sets the number of steps done, on which Adam's bias correction depends."""
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

    With n = step - 1, the number of steps done, these are the functions of n that `transformers` has (optimization.py),
    so a run of one step trains at the first rate of its schedule, and the last step of a run at a rate above the last.
    The rate rises linearly from 0 to `peak` over `warmup_steps`: peak * n / warmup_steps. The schedule says what
    follows:

    - `constant`: it stays.
    - `inverse_sqrt`: peak * sqrt(warmup_steps / n) (Vaswani et al. 2017); without a warm-up
      peak * sqrt(10,000 / (10,000 + n)).
    - `cosine` (Loshchilov & Hutter 2017) and `linear`: it falls to `min_lr_ratio` of the peak at n = `lr_decay_steps`,
      and stays there.
    - `wsd`: it stays, and falls as 1 - sqrt over the last `lr_decay_ratio` of the `lr_decay_steps`, to the same value
      (Haegele et al. 2024).
    """
    done = step - 1
    if done < warmup_steps:
        return peak * done / warmup_steps
    if schedule == "constant":
        return peak
    if schedule == "inverse_sqrt":
        timescale = warmup_steps or 10_000
        return peak * math.sqrt(timescale / (done + timescale - warmup_steps))
    start = warmup_steps
    if schedule == "wsd":
        start = max(warmup_steps, lr_decay_steps - round(lr_decay_ratio * lr_decay_steps))
    share = min(1.0, max(0.0, (done - start) / max(1, lr_decay_steps - start)))
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * share)), "linear": 1 - share, "wsd": 1 - math.sqrt(share)}
    return peak * (min_lr_ratio + (1 - min_lr_ratio) * shape[schedule])
