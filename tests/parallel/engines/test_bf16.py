"""Copies of the parameters that are rounded once a step: to the last bit what rounding for each micro-batch gives."""

from dataclasses import replace

import pytest
import torch

from ingot.model.initialization import initialize
from ingot.model.transformer import LanguageModel
from ingot.parallel.engines.activation_checkpointing import checkpoint_activations
from ingot.parallel.engines.bf16 import Bf16Compute, Bf16Copies
from tests.layouts import GLOBAL, MODELS, batch_of, rows_of


def train(compute: type, model: str, frozen: str, how: str, *, steps: int = 3) -> list[torch.Tensor]:
    """Losses, evaluations, gradients and parameters of steps of four micro-batches."""
    module = LanguageModel(replace(MODELS[model], dropout=0.1))
    initialize(module, 0)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not frozen or frozen not in name)
    checkpoint_activations(list(module.blocks), how)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    wrapped, found = compute(module), []
    for step in range(steps):
        torch.manual_seed(step)
        batch, num_targets, _ = batch_of(model, step)
        for start in range(0, GLOBAL, 2):
            loss = wrapped(**rows_of(batch, model, start, start + 2)) / num_targets
            loss.backward()
            found.append(loss.detach())
        found += [p.grad.clone() for p in module.parameters() if p.requires_grad]
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(wrapped, Bf16Copies):
            wrapped.forget()
        with torch.no_grad():
            found.append(wrapped(**rows_of(batch, model, 0, 4)))
            next(iter(module.parameters())).mul_(0.5)  # as somebody in a notebook may
            found.append(wrapped(**rows_of(batch, model, 0, 4)))
    return [*found, *(p.detach() for p in module.parameters())]


@pytest.mark.parametrize(
    ("model", "frozen", "how"),
    [("gpt2", "", "none"), ("llama", "", "selective"), ("bert", "query", "none"), ("gpt2", "embedding.token", "full")],
)
def test_copies_change_no_bit(model, frozen, how):
    expected, found = (train(compute, model, frozen, how) for compute in (Bf16Compute, Bf16Copies))
    assert all(map(torch.equal, expected, found))


def test_a_step_rounds_once():
    module = LanguageModel(replace(MODELS["gpt2"]))
    initialize(module, 0)
    compute = Bf16Copies(module)
    batch, _, _ = batch_of("gpt2", 0)
    compute(**rows_of(batch, "gpt2", 0, 2)).backward()
    copies = list(compute._copies.values())
    versions = [copy._version for copy in copies]
    compute(**rows_of(batch, "gpt2", 2, 4)).backward()
    assert [copy._version for copy in copies] == versions
    assert all(copy.grad is None for copy in copies)  # their memory is free again
    compute.forget()
    compute(**rows_of(batch, "gpt2", 2, 4))
    assert [copy._version for copy in copies] == [version + 1 for version in versions]
