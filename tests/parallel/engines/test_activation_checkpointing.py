"""Activation checkpointing keeps fewer activations, and gives the same gradients."""

import copy

import pytest
import torch
from torch import nn

from ingot.parallel.engines.activation_checkpointing import checkpoint_activations


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(32, 128), nn.Linear(128, 32), nn.LayerNorm(32)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def kept_bytes_and_gradients(how: str) -> tuple[int, list[torch.Tensor]]:
    """Bytes that are kept from forward to backward, without input and output; and all gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(*(copy.deepcopy(Block()) for _ in range(3)))
    x = torch.randn(4, 16, 32, requires_grad=True)
    checkpoint_activations(model, how)
    storages: dict[int, int] = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(x).square().sum()
    loss.backward()
    return sum(storages.values()), [x.grad, *(p.grad for p in model.parameters())]


def test_checkpointing_keeps_less_and_gradients_are_equal():
    everything, expected = kept_bytes_and_gradients("none")
    for how in ("selective", "full"):
        kept, found = kept_bytes_and_gradients(how)
        assert kept < everything / 2, how
        for mine, other in zip(found, expected, strict=True):
            assert torch.equal(mine, other)


runs = []


@torch.library.custom_op("test_recompute::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    runs.append(x.shape)
    return x * 2


double.register_autograd(lambda ctx, grad: grad * 2, setup_context=lambda ctx, inputs, output: None)


class Doubling(nn.Module):
    def forward(self, x):
        return torch.sin(double(torch.exp(x)))


@pytest.mark.parametrize(("how", "times"), [("none", 1), ("selective", 1), ("full", 2)])
def test_selective_does_not_run_the_kept_operators_again(how, times):
    runs.clear()
    model = nn.Sequential(Doubling())
    checkpoint_activations(model, how, kept=["test_recompute::double"])
    model(torch.randn(4, 8, requires_grad=True)).sum().backward()
    assert len(runs) == times


def test_without_gradients_nothing_is_kept():
    model = nn.Sequential(Block())
    checkpoint_activations(model, "full")
    with torch.no_grad():
        assert not model(torch.randn(2, 4, 32)).requires_grad


@pytest.mark.parametrize("how", ["selective", "full"])
def test_dropout_drops_the_same_when_it_is_computed_again(how):
    grads = []
    for each in ("none", how):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)))
        checkpoint_activations(model, each)
        torch.manual_seed(2)
        model(torch.ones(4, 8)).sum().backward()
        grads.append(model[0][0].weight.grad)
    assert torch.equal(*grads)
