"""The loss is a sum over targets, equal to a naive one in float64."""

import pytest
import torch

from model import loss as loss_file
from model.loss import linear_cross_entropy


def naive(hidden, weight, bias, labels):
    logits = hidden.double() @ weight.double().T + bias.double()
    log_probabilities = logits - logits.exp().sum(-1, keepdim=True).log()
    return -sum(log_probabilities[row, label] for row, label in enumerate(labels.tolist()) if label != -100)


def random_rows(rows):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(s, generator=generator).requires_grad_() for s in ((rows, 16), (41, 16), (41,)))
    labels = torch.randint(0, 41, (rows,), generator=generator)
    labels[::3] = -100
    return hidden, weight, bias, labels


@pytest.mark.parametrize("rows", [7, 64, 130])
def test_sum_and_gradients_equal_naive(monkeypatch, rows):
    monkeypatch.setattr(loss_file, "ROWS_AT_A_TIME", 64)
    hidden, weight, bias, labels = random_rows(rows)
    got, expected = linear_cross_entropy(hidden, weight, bias, labels), naive(hidden, weight, bias, labels)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)
    for a, b in zip(*(torch.autograd.grad(x, (hidden, weight, bias)) for x in (got, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [0, 5])
def test_no_target_gives_zero_with_zero_gradients(rows):
    hidden, weight, bias, labels = random_rows(rows)
    value = linear_cross_entropy(hidden, weight, bias, torch.full_like(labels, -100))
    assert value.item() == 0
    for gradient in torch.autograd.grad(value, (hidden, weight, bias), allow_unused=True):
        assert gradient is None or not gradient.any()


def test_bf16_rows_give_a_fp32_sum():
    hidden, weight, bias, labels = (x.detach() for x in random_rows(3000))
    value = linear_cross_entropy(*(x.bfloat16() for x in (hidden, weight, bias)), labels)
    assert value.dtype == torch.float32
    rounded = naive(*(x.bfloat16() for x in (hidden, weight, bias)), labels)
    torch.testing.assert_close(value.double(), rounded, rtol=1e-3, atol=0)
