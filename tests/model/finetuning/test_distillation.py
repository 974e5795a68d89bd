"""Distillation, against its formula worked out by hand."""

import pytest
import torch
from torch import nn

from ingot.model.config import ModelConfig
from ingot.model.finetuning import distillation
from ingot.model.finetuning.distillation import add_teacher
from ingot.model.finetuning.task_model import TaskConfig, TaskModel
from ingot.model.transformer import LanguageModel
from tests.model.finetuning.test_adversarial import BOUNDS, CONFIG, IDS, PACKED, model_of, with_values


def language_model(seed: int, **settings) -> LanguageModel:
    return with_values(LanguageModel(ModelConfig(**CONFIG | settings)), seed)


def test_distillation_is_a_part_of_the_loss_and_a_part_of_the_divergence():
    student, teacher = model_of(seed=1), model_of(seed=2)
    names = [name for name, _ in student.named_parameters()]
    logits, wanted = student(**PACKED), teacher(**PACKED)
    hidden = [model.hidden_states(IDS, cu_seqlens=BOUNDS) for model in (student, teacher)]
    labels = torch.tensor([0, -100, 1])
    known = [0, 2]
    loss = nn.functional.cross_entropy(logits[known], labels[known], reduction="sum")
    p, q = (wanted[known] / 3).softmax(-1), (logits[known] / 3).softmax(-1)
    expected = 0.4 * loss + 0.6 * 9 * (p * (p / q).log()).sum()
    add_teacher(student, teacher, weight=0.6, temperature=3.0)
    torch.testing.assert_close(student(**PACKED, labels=labels), expected)
    assert [name for name, _ in student.named_parameters()] == names
    student(**PACKED, labels=labels).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    add_teacher(student, teacher, weight=0.6, temperature=3.0, hidden_weight=0.5)
    last = [model.blocks[-1] for model in (student, teacher)]
    outputs = []
    hooks = [block.register_forward_hook(lambda m, a, output: outputs.append(output)) for block in last]
    found = student(**PACKED, labels=labels)
    for hook in hooks:
        hook.remove()
    apart = (outputs[0] - outputs[1]).square().mean()
    torch.testing.assert_close(found, expected + 0.5 * 2 * apart)
    assert hidden[0].shape == hidden[1].shape


def test_a_teacher_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a sequence model with 3 labels, and the model is a token model with 3"):
        add_teacher(TaskModel(ModelConfig(**CONFIG), TaskConfig("token", 3)), model_of(), weight=1, temperature=1)
    wide = TaskModel(ModelConfig(**CONFIG | {"hidden_size": 32}), TaskConfig("sequence", 3))
    with pytest.raises(ValueError, match=r"of the teacher is 32, and that of the model 16; set hidden_weight to 0"):
        add_teacher(model_of(), wide, weight=1, temperature=1, hidden_weight=1)


@pytest.mark.parametrize("causal", [True, False])
def test_a_language_model_learns_what_the_teacher_says_of_each_target(causal, monkeypatch):
    monkeypatch.setattr(distillation, "rows_at_a_time", lambda *sizes: (3, 1))  # several chunks
    student, teacher = (
        language_model(1, causal=causal),
        language_model(2, causal=causal, num_hidden_layers=3, intermediate_size=48),
    )
    labels = IDS.roll(-1, 1).masked_fill(torch.arange(20) % 3 == 0, -100)
    known = labels[0] >= 0
    names = [name for name, _ in student.named_parameters()]
    plain = student(**PACKED, labels_BT=labels, z_loss=0.01)
    logits, wanted = student(**PACKED)[0, known], teacher(**PACKED)[0, known]
    p, q = (wanted / 2).softmax(-1), (logits / 2).softmax(-1)
    hidden = [model.hidden_states(IDS, cu_seqlens=BOUNDS) for model in (student, teacher)]
    expected = 0.3 * plain + 0.7 * 4 * (p.detach() * (p.detach() / q).log()).sum()
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()
    add_teacher(student, teacher, weight=0.7, temperature=2.0)
    found = student(**PACKED, labels_BT=labels, z_loss=0.01)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert [name for name, _ in student.named_parameters()] == names == list(gradients)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert hidden[0].shape == hidden[1].shape
    torch.testing.assert_close(student.eval()(**PACKED, labels_BT=labels, z_loss=0.01), plain)


def test_hidden_states_of_a_language_model_are_drawn_to_the_teachers():
    student, teacher = language_model(1, causal=True), language_model(2, causal=True)
    labels = IDS.roll(-1, 1)
    add_teacher(student, teacher, weight=0.0, temperature=1.0)
    plain = student(**PACKED, labels_BT=labels)
    add_teacher(student, teacher, weight=0.0, temperature=1.0, hidden_weight=0.5)
    outputs = []
    for model in (student, teacher):
        hook = model.blocks[-1].register_forward_hook(lambda m, a, output: outputs.append(output))
        model.hidden_states(IDS, cu_seqlens=BOUNDS)
        hook.remove()
    found = student(**PACKED, labels_BT=labels)
    torch.testing.assert_close(found, plain + 0.5 * 20 * (outputs[0] - outputs[1]).square().mean())
    found.backward()  # reaches the student through both
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_no_target_adds_nothing():
    student, teacher = language_model(1), language_model(2)
    add_teacher(student, teacher, weight=0.5, temperature=1.0)
    loss = student(**PACKED, labels_BT=torch.full_like(IDS, -100))
    loss.backward()
    assert loss.item() == 0
    assert all(not parameter.grad.any() for parameter in student.parameters())


def test_a_language_teacher_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="is a causal language model with vocab_size 50, and the model is a masked"):
        add_teacher(language_model(1), language_model(1, causal=True), weight=1, temperature=1)
    with pytest.raises(ValueError, match="vocab_size 60, and the model is a masked language model with vocab_size 50"):
        add_teacher(language_model(1), language_model(1, vocab_size=60), weight=1, temperature=1)
