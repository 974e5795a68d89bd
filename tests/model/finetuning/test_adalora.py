"""AdaLoRA's layers, and the part of the loss that holds their factors orthogonal."""

import pytest
import torch

from ingot.model.finetuning.adalora import add_adalora, num_targets, orthogonality_penalty
from ingot.model.finetuning.task_model import TaskModel
from ingot.model.initialization import initialize
from tests.model.finetuning.test_adversarial import CONFIG, LABELS, PACKED, model_of


def with_adalora(dropout: float = 0.0) -> TaskModel:
    model = model_of(dropout)
    add_adalora(model, 4, 8.0, 0.0, r"blocks\..*\.(query|down)")
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_()
    return model


def test_a_layer_adds_its_product_scaled():
    layer = with_adalora().blocks[0].attention.query
    x = torch.randn(3, 16)
    a, e, b = (getattr(layer, f"lora_{part}")["default"] for part in "AEB")
    expected = layer.base_layer(x) + x @ (b @ torch.diag(e[:, 0]) @ a).T * 8 / 4
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_the_loss_holds_factors_orthogonal_where_it_is_trained():
    model = with_adalora()
    layers = [layer for block in model.blocks for layer in (block.attention.query, block.mlp.down)]
    apart = [orthogonality_penalty(layer.lora_A["default"], layer.lora_B["default"]) for layer in layers]
    loss = model.eval()(**PACKED, labels=LABELS)
    found = model.train()(**PACKED, labels=LABELS)
    torch.testing.assert_close(found, loss + 0.5 * torch.stack(apart).mean() * 3)
    torch.testing.assert_close(model(**PACKED, labels=LABELS), found)  # a forward leaves nothing to the next one
    with torch.no_grad():
        torch.testing.assert_close(model(**PACKED, labels=LABELS), loss)
    orthogonal, _ = torch.linalg.qr(torch.randn(16, 4))
    assert float(orthogonality_penalty(orthogonal.T, orthogonal)) == pytest.approx(0, abs=1e-5)
    a, b = torch.randn(4, 16), torch.randn(10, 4)
    expected = (torch.linalg.norm(a @ a.T - torch.eye(4)) + torch.linalg.norm(b.T @ b - torch.eye(4))) / 2
    torch.testing.assert_close(orthogonality_penalty(a, b), expected)


@pytest.mark.parametrize(
    ("kind", "labels", "count"),
    [
        ("sequence", torch.tensor([0, -100, 2]), 2),
        ("sequence", torch.tensor([[0.5, float("nan")], [float("nan")] * 2]), 1),
        ("span", torch.tensor([[1, 2], [-100, -100]]), 1),
        ("token", torch.tensor([[0, -100, 1], [1, 1, -100]]), 4),
    ],
)
def test_targets_are_those_that_the_loss_sums_over(kind, labels, count):
    model = model_of()
    model.task.kind = kind
    assert num_targets(model, labels) == count


def test_only_the_additions_are_new():
    model = with_adalora()
    plain = TaskModel(model.config, model.task)
    initialize(plain, 1)
    added = {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert {name.replace(".base_layer", "") for name, _ in model.named_parameters()} - added == {
        name for name, _ in plain.named_parameters()
    }
    assert len(added) == 3 * 2 * CONFIG["num_hidden_layers"]
