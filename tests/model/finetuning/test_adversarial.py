"""R-Drop, FGM and FreeLB, each against its formula worked out by hand."""

import torch
from torch import nn

from ingot.model.config import ModelConfig
from ingot.model.finetuning.adversarial import Adversarial, add_regularizer, example_norms
from ingot.model.finetuning.task_model import TaskConfig, TaskModel
from ingot.model.initialization import initialize

CONFIG = {
    "vocab_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "max_position_embeddings": 32,
    "causal": False,
}
IDS = torch.randint(0, 50, (1, 20), generator=torch.Generator().manual_seed(0))
BOUNDS = torch.tensor([0, 6, 13, 20], dtype=torch.int32)
LABELS = torch.tensor([0, 2, 1])
PACKED = {"input_ids_BT": IDS, "cu_seqlens": BOUNDS}


def model_of(dropout: float = 0.0, seed: int = 1, **task) -> TaskModel:
    config = ModelConfig(**CONFIG, dropout=dropout)
    return with_values(TaskModel(config, TaskConfig("sequence", 3, pooling="mean", **task)), seed)


def with_values(model, seed: int):
    """The model with values so large that its answers differ, for training."""
    initialize(model, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model.train()


def test_parameters_keep_their_names():
    names = [name for name, _ in model_of().named_parameters()]
    for adversarial, r_drop in (("none", 1.0), ("fgm", 0.0), ("freelb", 0.0)):
        model = model_of()
        add_regularizer(model, adversarial, 1.0, 3, r_drop)
        assert [name for name, _ in model.named_parameters()] == names
        assert type(model) is not TaskModel
        expected = model_of().eval()(**PACKED, labels=LABELS)
        assert torch.equal(model.eval()(**PACKED, labels=LABELS), expected)  # where it is not trained, nothing differs


def test_r_drop_is_the_mean_loss_and_the_divergence_of_two_passes():
    model = model_of(dropout=0.3)
    torch.manual_seed(5)
    first, second = (model(**PACKED) for _ in range(2))
    losses = [nn.functional.cross_entropy(logits, LABELS, reduction="sum") for logits in (first, second)]
    p, q = first.softmax(-1), second.softmax(-1)
    divergence = ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
    add_regularizer(model, "none", 0, 0, 0.7)
    torch.manual_seed(5)
    torch.testing.assert_close(model(**PACKED, labels=LABELS), sum(losses) / 2 + 0.7 * divergence)
    assert divergence > 1e-3


def test_r_drop_leaves_out_examples_without_a_label():
    model = model_of(dropout=0.3)
    add_regularizer(model, "none", 0, 0, 0.7)
    torch.manual_seed(5)
    assert model(**PACKED, labels=torch.full((3,), -100)) == 0


def test_fgm_adds_the_loss_a_step_along_each_example_s_gradient():
    model = model_of()
    embedded = (
        model.embedding(IDS, torch.cat([torch.arange(n) for n in (6, 7, 7)])[None], None).detach().requires_grad_()
    )

    def loss_at(x):
        hook = model.embedding.register_forward_hook(lambda *_: x)
        loss = model(**PACKED, labels=LABELS)
        hook.remove()
        return loss

    clean = loss_at(embedded)
    (gradient,) = torch.autograd.grad(clean, embedded)
    moved = embedded.detach().clone()
    for start, end in ((0, 6), (6, 13), (13, 20)):
        part = gradient[:, start:end]
        moved[:, start:end] += 0.4 * part / part.norm()
    expected = (clean + loss_at(moved)) / 2
    add_regularizer(model, "fgm", 0.4, 0, 0.0)
    found = model(**PACKED, labels=LABELS)
    torch.testing.assert_close(found, expected)
    assert found > clean
    found.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_freelb_stays_within_the_norm_and_raises_the_loss(monkeypatch):
    model = model_of()
    add_regularizer(model, "freelb", 0.3, 4, 0.0)
    seen = []
    hook = model.embedding.register_forward_hook(lambda m, a, output: seen.append(output.detach()))
    torch.manual_seed(2)
    found = model(**PACKED, labels=LABELS)
    hook.remove()
    assert len(seen) == 4
    plain = model.eval()(**PACKED, labels=LABELS)
    clean = model.embedding(IDS, torch.cat([torch.arange(n) for n in (6, 7, 7)])[None], None)
    assert all(example_norms(output - clean, BOUNDS).max() <= 0.3 + 1e-5 for output in seen)
    assert found > plain
    assert isinstance(model, Adversarial)


def test_norms_are_those_of_each_example():
    x = torch.randn(1, 20, 4)
    expected = torch.cat([x[0, a:b].norm().expand(b - a) for a, b in ((0, 6), (6, 13), (13, 20))])
    torch.testing.assert_close(example_norms(x, BOUNDS)[0, :, 0], expected)
    torch.testing.assert_close(example_norms(x, None)[0, :, 0], x.norm().expand(20))
