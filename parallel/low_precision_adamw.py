"""AdamW whose two moments are kept in bf16, which halves the optimizer's memory.

A step computes in fp32 and then rounds the new moments. Rounding to the nearest would lose what changes little in a
step: with beta2 = 0.999 the second moment falls by at most 0.1 %, and the next bf16 number is 0.4 to 0.8 % away, so it
would never fall. Stochastic rounding (Gupta et al. 2015, arXiv 1502.02551) is right on average. Here the random number
is one of an evenly distributed sequence, and the same for all elements of a step: that is right on average over the
steps, and a function of the step alone. So every layout rounds in the same way, and a resumed run does, too.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

PIECE = 1 << 24
"""Elements that are updated at once. They need 8 bytes each for fp32 copies of the moments."""


class AdamWInBf16(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) with `exp_avg` and `exp_avg_sq` in bf16, by torch's fused kernel.

    Args:
        groups: as for torch's optimizers.
    """

    state_dtype = torch.bfloat16

    def __init__(self, groups: list[dict], *, learning_rate: float, betas: tuple[float, float], eps: float):
        super().__init__(groups, {"lr": learning_rate, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # torch's has overloads
        assert closure is None, "the engines compute the gradients before the step"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for pieces in _chunks(piece for p in parameters for piece in self._pieces(p)):
                _update(pieces, group)
            for parameter in parameters:
                self.state[parameter]["step"] += 1

    def _pieces(self, parameter: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Flat parts of this rank's part: of the parameter, its gradient and its moments, and the number of steps."""
        state = self.state[parameter]
        tensors = [parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"]]
        flat = [(t.to_local() if isinstance(t, DTensor) else t).view(-1) for t in tensors if t is not None]
        for parts in zip(*(tensor.split(PIECE) for tensor in flat), strict=True):
            yield (*parts, state["step"])


def _chunks(pieces: Iterator[tuple[Tensor, ...]]) -> Iterator[list[tuple[Tensor, ...]]]:
    """The pieces in lists of about `PIECE` elements together."""
    chunk: list[tuple[Tensor, ...]] = []
    for piece in pieces:
        if chunk and sum(each[0].numel() for each in chunk) + piece[0].numel() > PIECE:
            yield chunk
            chunk = []
        chunk.append(piece)
    if chunk:
        yield chunk


def _update(pieces: list[tuple[Tensor, ...]], group: dict) -> None:
    parameters, gradients, firsts, seconds, steps = (list(each) for each in zip(*pieces, strict=True))
    exact_firsts, exact_seconds = ([moment.float() for moment in moments] for moments in (firsts, seconds))
    done = [step.clone() for step in steps]  # the kernel counts, and a parameter may have several pieces
    beta1, beta2 = group["betas"]
    adamw(
        parameters,
        gradients,
        exact_firsts,
        exact_seconds,
        [],
        done,
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
    for offset, moments, exact in ((0, firsts, exact_firsts), (1 << 15, seconds, exact_seconds)):
        for moment, x, step in zip(moments, exact, done, strict=True):
            round_to_bf16(x, step, offset, out=moment)


def round_to_bf16(x: Tensor, step: Tensor, offset: int, *, out: Tensor) -> None:
    """Rounds fp32 numbers to one of the two bf16 numbers beside each, in the direction that `step` gives.

    Args:
        x: fp32, contiguous.
        step: a scalar on the device of x, so that nothing waits for it.
        offset: below 2^16; where in the sequence step 0 is.
        out: bf16, contiguous.
    """
    # A bf16 number is the upper half of a fp32 number. Multiples of an odd number near 2^16 / 1.618, the golden ratio,
    # reach all of 0 ... 2^16 - 1, and the next ones lie in the largest gaps (Knuth, volume 3, section 6.4).
    threshold = ((step.to(torch.int64) * 40503 + offset) & 0xFFFF).to(torch.int32)
    out.view(torch.int16).copy_((x.view(torch.int32) + threshold) >> 16)
