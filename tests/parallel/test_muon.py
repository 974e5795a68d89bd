"""Muon takes the matrices that it is told to, AdamW the rest, and both share one learning rate and one state."""

import pytest
import torch
from torch import nn

from ingot.parallel.muon import MuonWithAdamW, names_matching
from ingot.parallel.optimizer import create_state, matrices, set_step


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.ModuleDict({"embedding": nn.Embedding(7, 8), "mlp": nn.Linear(8, 4)})


def made(module: nn.Module, momentum: float = 0.95) -> MuonWithAdamW:
    chosen = names_matching(matrices(module), ["mlp.*"])
    rest = {"learning_rate": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "momentum": momentum, "weight_decay": 0.0}
    return MuonWithAdamW(module, chosen, matrices(module), **rest)


def test_the_chosen_matrix_gets_an_orthogonal_update_and_the_others_adams(module):
    optimizer = made(module)
    create_state(optimizer, list(module.parameters()))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    update = module["mlp"].weight.detach() - before["mlp.weight"]
    singular = torch.linalg.svdvals(update)
    assert singular.max() / singular.min() < 2  # Newton-Schulz in five steps makes them nearly equal
    for name in ("embedding.weight", "mlp.bias"):  # the first step of Adam is the sign of the gradient
        expected = -0.1 * dict(module.named_parameters())[name].grad.sign()
        torch.testing.assert_close(dict(module.named_parameters())[name].detach() - before[name], expected)
    assert set(optimizer.state[module["mlp"].weight]) == {"momentum_buffer"}
    assert "exp_avg" in optimizer.state[module["embedding"].weight]


def test_learning_rate_and_step_reach_both(module):
    optimizer = made(module)
    create_state(optimizer, list(module.parameters()))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))
    set_step(optimizer, 7)
    assert optimizer.state[module["mlp"].bias]["step"] == 7


def test_a_pattern_that_names_nothing_is_refused(module):
    with pytest.raises(ValueError, match=r"'blocks\.\*\.weight'.*embedding.weight"):
        names_matching(matrices(module), ["blocks.*.weight"])
