"""The three matrix products of a linear layer in float8, as one autograd function (Micikevicius et al. 2022, arXiv
2209.05433).

A product multiplies two matrices along the last dim of both, A (R, C) and B (S, C), as A B^T. Both are first divided by
scales and rounded to float8: e4m3 (3 bits of fraction, largest 448) or e5m2 (2 bits, largest 57,344).

| product            | A                       | B                    | summed over |
|--------------------|-------------------------|----------------------|-------------|
| output             | input (M, K)            | weight (N, K)        | K           |
| gradient of input  | gradient (M, N)         | weight^T (K, N)      | N           |
| gradient of weight | gradient^T (N, M)       | input^T (K, M)       | M           |

`tensorwise` has one scale for a matrix, and gradients in e5m2, which span more. `rowwise` has a scale for each row of A
and B, so that a large element costs only its own row precision, and gradients in e4m3, too, which has more precision.
(torchao's recipes of these names do the same.) Scales are powers of two, from the largest absolute value:

- Dividing by them is exact, and so a number is rounded once, to the same float8 number, whether eager or compiled.
- The largest element comes to lie between half of the largest float8 number and this number itself. So nothing is ever
  beyond the range, and nothing must be clamped (torch up to 2.11 does not saturate). All zeros have the smallest scale.
- A maximum that is infinite or NaN gives the scale NaN: the loss then shows it, as without float8.

Where tensor ranks share a matrix along a dim that a scale covers, they agree on the maximum. So each of them has the
same float8 numbers that one rank alone would have.

Legend: M tokens, N outputs, K inputs.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ingot.parallel.tensor_parallel.collectives import all_reduce
from ingot.parallel.torch_compat import scaled_mm

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_TOP = {E4M3: 8, E5M2: 15}  # the largest number of both is 1.75 times 2 to this power
MULTIPLE = 16
"""The kernels for CUDA take matrices whose sizes are multiples of this."""


@dataclass(frozen=True)
class Scaling:
    """How the matrices of a layer are scaled.

    Attributes:
        rowwise: a scale for each row, instead of one for a matrix.
        cut: the dim of the weight that the ranks of `group` share, `N` or `K`.
        group: None if one rank has the whole weight.
    """

    rowwise: bool
    cut: str = "N"
    group: dist.ProcessGroup | None = None

    @property
    def gradients(self) -> torch.dtype:
        """The type of gradients."""
        return E4M3 if self.rowwise else E5M2

    def maxima(self, *matrices: tuple[Tensor, str]) -> list[Tensor]:
        """The largest absolute values of matrices, in fp32: (rows, 1) of each, or a scalar.

        Args:
            matrices: each with the names of its dims, such as `MK`.
        """
        found = [(x.abs().amax(-1, keepdim=True) if self.rowwise else x.abs().amax()).float() for x, _ in matrices]
        if self.group is None:
            return found
        shared = [n for n, (_, dims) in enumerate(matrices) if self.cut in (dims[-1] if self.rowwise else dims)]
        if shared:
            largest = all_reduce(torch.cat([found[n].flatten() for n in shared]), self.group, "max")
            parts = largest.split([found[n].numel() for n in shared])
            for n, part in zip(shared, parts, strict=True):
                found[n] = part.view_as(found[n])
        return found


def float8_linear(x: Tensor, weight_NK: Tensor, scaling: Scaling) -> Tensor:
    """x (..., K) times the transposed weight, (..., N), in the type of x. Both products of the backward pass are in
    float8, too."""
    return _Products.apply(x.flatten(0, -2), weight_NK, scaling).unflatten(0, x.shape[:-1])


class _Products(torch.autograd.Function):
    """Keeps input and weight as they are, and rounds them again for the backward pass.

    Their float8 numbers would take half of the memory once more: the input is mostly kept by another operator as well,
    and ZeRO-3 and FSDP2 free the weight in between.
    """

    @staticmethod
    def forward(ctx, x_MK, weight_NK, scaling):
        maxima = scaling.maxima((x_MK, "MK"), (weight_NK, "NK"))
        ctx.scaling = scaling
        ctx.save_for_backward(x_MK, weight_NK, *([] if scaling.rowwise else maxima))
        # The sums of the forward pass may be in fewer bits (on Hopper), as in torchao; those of gradients are not.
        return _product(x_MK, weight_NK, maxima, E4M3, fast_sums=True)

    @staticmethod
    def backward(ctx, grad_MN):
        x_MK, weight_NK, *known = ctx.saved_tensors
        scaling, grad_x, grad_weight = ctx.scaling, None, None
        if scaling.rowwise:
            if ctx.needs_input_grad[0]:
                maxima = scaling.maxima((grad_MN, "MN"), (weight_NK.T, "KN"))
                grad_x = _product(grad_MN, weight_NK.T, maxima, scaling.gradients)
            if ctx.needs_input_grad[1]:
                grad_NM, x_KM = _whole(grad_MN.T), _whole(x_MK.T)
                grad_weight = _product(grad_NM, x_KM, scaling.maxima((grad_NM, "NM"), (x_KM, "KM")), scaling.gradients)
            return grad_x, grad_weight, None
        (largest,), (largest_x, largest_weight) = scaling.maxima((grad_MN, "MN")), known
        if ctx.needs_input_grad[0]:
            grad_x = _product(grad_MN, weight_NK.T, [largest, largest_weight], scaling.gradients)
        if ctx.needs_input_grad[1]:
            grad_weight = _product(_whole(grad_MN.T), _whole(x_MK.T), [largest, largest_x], scaling.gradients)
        return grad_x, grad_weight, None


def _whole(x_RM: Tensor) -> Tensor:
    """With columns of zeros, which add nothing to a product, until their number is a multiple of `MULTIPLE`."""
    missing = -x_RM.shape[1] % MULTIPLE
    return nn.functional.pad(x_RM, (0, missing)) if missing else x_RM


def _product(a_RC: Tensor, b_SC: Tensor, maxima: list[Tensor], dtype: torch.dtype, fast_sums: bool = False) -> Tensor:
    """A B^T, (R, S), in the type of A.

    Args:
        maxima: of A and of B.
        dtype: float8 type of A; B is e4m3, since the kernels do not multiply e5m2 by e5m2.
    """
    a, scale_a = rounded(a_RC, maxima[0], dtype)
    b, scale_b = rounded(b_SC, maxima[1], E4M3)
    return scaled_mm(a, b.T, scale_a, scale_b.T if scale_b.ndim else scale_b, out_dtype=a_RC.dtype, fast_sums=fast_sums)


def rounded(x: Tensor, maximum: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x / scale in float8, row-major; and the scale, a power of two, in fp32.

    Args:
        maximum: of the absolute values that one scale covers, fp32: a scalar, or one for each row.
    """
    # The scale is 2^(e - top) for a maximum in (1.75 * 2^(e-1), 1.75 * 2^e]. A fp32 number has its exponent (plus 127)
    # from bit 23 on, and adding 2^21 - 1 to its bits carries into the exponent if the fraction is above 1.75.
    exponent = ((maximum.view(torch.int32) + 0x1FFFFF) >> 23) - _TOP[dtype]
    exponent = exponent.clamp(min=1)  # of all zeros
    scale = torch.where(maximum.isfinite(), (exponent << 23).view(torch.float32), torch.nan)
    inverse = ((254 - exponent) << 23).view(torch.float32).to(x.dtype)
    return (x * inverse).to(dtype, memory_format=torch.contiguous_format), scale
