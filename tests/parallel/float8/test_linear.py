"""The three products of a float8 layer, against matrices that are rounded to float8 and multiplied in fp64."""

import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ingot.parallel.float8.linear import E4M3, E5M2, Scaling, _Products, float8_linear, rounded

LARGEST = {E4M3: 448.0, E5M2: 57344.0}
RECIPES = {"tensorwise": Scaling(rowwise=False), "rowwise": Scaling(rowwise=True)}


def as_float8(x: torch.Tensor, dtype: torch.dtype, rowwise: bool) -> torch.Tensor:
    """Rounded to float8 and back, in fp64: each row, or the whole matrix, with the largest power of two as factor that
    keeps it within the range."""
    rows = []
    for row in x.double() if rowwise else x.double()[None]:
        factor = 2.0 ** math.floor(math.log2(LARGEST[dtype] / row.abs().max().item()))
        rows.append((row * factor).clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype).double() / factor)
    return torch.stack(rows) if rowwise else rows[0]


def inputs(dtype: torch.dtype, tokens: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input, weight and gradient of the output, whose rows and columns are of very different sizes."""
    torch.manual_seed(0)
    x, weight, grad = torch.randn(tokens, 64), torch.randn(48, 64) * 0.02, torch.randn(tokens, 48) * 1e-5
    x, grad = x * torch.logspace(-2, 1, tokens)[:, None], grad * torch.logspace(1, -3, tokens)[:, None]
    x, weight = x * torch.logspace(0, 1, 64), weight * torch.logspace(-1, 0, 48)[:, None]
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), grad.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", RECIPES)
def test_each_product_is_that_of_rounded_matrices(recipe, dtype):
    x, weight, grad = inputs(dtype)
    out = float8_linear(x.view(5, 8, 64), weight, RECIPES[recipe])
    grad_x, grad_weight = torch.autograd.grad(out, (x, weight), grad.view(5, 8, 48))
    rowwise, gradients = recipe == "rowwise", E4M3 if recipe == "rowwise" else E5M2
    expected = {
        "output": as_float8(x, E4M3, rowwise) @ as_float8(weight, E4M3, rowwise).T,
        "grad_x": as_float8(grad, gradients, rowwise) @ as_float8(weight.T, E4M3, rowwise).T,
        "grad_weight": as_float8(grad.T, gradients, rowwise) @ as_float8(x.T, E4M3, rowwise).T,
    }
    for (name, wanted), found in zip(expected.items(), (out.flatten(0, 1), grad_x, grad_weight), strict=True):
        assert found.dtype == dtype, name
        assert torch.allclose(found.double(), wanted, rtol=1e-5 if dtype == torch.float32 else 2**-8, atol=0), name
    # and they are those of the plain layer, but for float8
    plain = nn.functional.linear(x, weight)
    plain_x, plain_weight = torch.autograd.grad(plain, (x, weight), grad)
    limit = 0.045 if rowwise else 0.09
    for found, wanted in ((out.flatten(0, 1), plain), (grad_x, plain_x), (grad_weight, plain_weight)):
        assert (found - wanted).norm() < limit * wanted.norm()


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_no_number_is_beyond_the_range_and_the_range_is_used(dtype):
    edges = [1.75 * 2.0**k for k in (-100, -1, 0, 1, 8, 15, 127)]
    edges += [float(torch.tensor(edge).nextafter(torch.tensor(math.inf))) for edge in edges]
    for largest in [*edges, 1e-30, 0.1, 1.0, 2.0, 3e38, torch.finfo(torch.bfloat16).max]:
        for kind in (torch.float32, torch.bfloat16):
            x = torch.tensor([[largest, -largest, largest / 3, 0.0]]).to(kind)
            found, scale = rounded(x, x.abs().max().float(), dtype)
            top = found.float().abs().max().item()
            assert LARGEST[dtype] / 2 <= top <= LARGEST[dtype], (largest, kind)
            assert math.log2(scale.item()).is_integer()
            assert torch.allclose(found.double() * scale.double(), x.double(), rtol=2**-3, atol=0)


def test_tiny_numbers_and_zeros_have_a_scale():
    for largest in (0.0, 1e-45, 1e-39, 1.2e-38):
        x = torch.tensor([[largest, 0.0]])
        found, scale = rounded(x, x.abs().max(), E4M3)
        assert scale.isfinite()
        assert scale > 0
        assert found.float().isfinite().all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_zeros_stay_zeros(recipe):
    x, weight, grad = inputs(torch.bfloat16)
    for zero in (x, weight, grad):
        parts = [torch.zeros_like(each) if each is zero else each.detach() for each in (x, weight, grad)]
        of_zeros = [part.requires_grad_() for part in parts[:2]]
        out = float8_linear(*of_zeros, RECIPES[recipe])
        found = [out, *torch.autograd.grad(out, of_zeros, parts[2])]
        is_zero = [zero is not grad, zero is not x, zero is not weight]  # of a factor that is 0
        for result, without in zip(found, is_zero, strict=True):
            assert result.isfinite().all()
            assert bool(result.any()) != without


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_not_finite_shows(recipe, bad):
    x, weight, grad = inputs(torch.bfloat16)
    with torch.no_grad():
        x[3, 5] = bad
    out = float8_linear(x, weight, RECIPES[recipe])
    (grad_weight,) = torch.autograd.grad(out, weight, grad)
    assert not out[3].isfinite().any()
    assert not grad_weight[:, 5].isfinite().any()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("tokens", [1, 15, 33])
def test_any_number_of_tokens(recipe, tokens):
    """Their number is summed over in the gradient of the weight; the kernels take multiples of 16, so zeros follow."""
    x, weight, grad = inputs(torch.float32, tokens)
    out = float8_linear(x, weight, RECIPES[recipe])
    _, found = torch.autograd.grad(out, (x, weight), grad)
    rowwise, gradients = recipe == "rowwise", E4M3 if recipe == "rowwise" else E5M2
    wanted = as_float8(grad.T, gradients, rowwise) @ as_float8(x.T, E4M3, rowwise).T
    assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("tokens", [1, 32, 33])
def test_the_kernels_of_cuda_take_the_matrices(recipe, tokens):
    """torch checks types, sizes and strides of fake tensors as its CUDA kernels do. (Without a GPU it has no autograd
    of fake CUDA tensors, so the two passes are called here.)"""

    class Context:
        needs_input_grad = (True, True, False)

        def save_for_backward(self, *tensors):
            self.saved_tensors = tensors

    def matrix(rows, columns):
        return torch.empty(rows, columns, dtype=torch.bfloat16, device="cuda")

    with FakeTensorMode(), torch.no_grad():
        context, x, weight = Context(), matrix(tokens, 64), matrix(48, 64)
        out = _Products.forward(context, x, weight, RECIPES[recipe])
        grad_x, grad_weight, _ = _Products.backward(context, matrix(1, 48).expand_as(out))  # as of a sum
        assert (out.shape, grad_x.shape, grad_weight.shape) == ((tokens, 48), x.shape, weight.shape)
        with pytest.raises(RuntimeError, match="divisible by 16"):
            _Products.forward(context, x, matrix(40, 64), RECIPES[recipe])


def test_a_large_element_costs_only_its_own_row_precision():
    x, weight, _ = inputs(torch.float32)
    plain = nn.functional.linear(x, weight)
    with torch.no_grad():
        x[0] *= 1e9
    errors = {
        name: (float8_linear(x, weight, recipe)[1:] - plain[1:]).norm() / plain[1:].norm()
        for name, recipe in RECIPES.items()
    }
    assert errors["rowwise"] < 0.05 < 0.9 < errors["tensorwise"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_only_what_is_needed_is_computed_and_kept(recipe, monkeypatch):
    from ingot.parallel.float8 import linear

    x, weight, grad = inputs(torch.bfloat16)
    kept, calls = [], []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    product = linear._product
    monkeypatch.setattr(linear, "_product", lambda *args, **more: calls.append(args) or product(*args, **more))
    for frozen in (x, weight):
        kept.clear()
        calls.clear()
        parts = [each.detach().requires_grad_(each is not frozen) for each in (x, weight)]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = float8_linear(*parts, RECIPES[recipe])
        out.backward(grad)
        assert len(calls) == 2
        assert [part.grad is None for part in parts] == [frozen is x, frozen is weight]
        large = {tensor.untyped_storage().data_ptr() for tensor in kept if tensor.numel() > 1}
        assert large <= {part.untyped_storage().data_ptr() for part in parts}


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_compiled_it_is_one_graph_with_the_same_numbers(recipe, backend):
    x, weight, grad = inputs(torch.bfloat16)

    def layer(x, weight):
        return float8_linear(x, weight, RECIPES[recipe])

    found = []
    for function in (layer, torch.compile(layer, fullgraph=True, backend=backend)):
        out = function(x, weight)
        found.append([out, *torch.autograd.grad(out, (x, weight), grad)])
    for eager, compiled in zip(*found, strict=True):
        assert torch.equal(eager, compiled)
