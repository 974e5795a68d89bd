"""The whole model: documents keep apart, the loss is a sum, the head owns its matrix."""

import copy
from itertools import pairwise

import pytest
import torch

from ingot.model import heads
from ingot.model.config import ModelConfig
from ingot.model.transformer import LanguageModel

KINDS = ("gpt", "bert", "modern")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", [(0, 9), (9, 20), (20, 32)])
def test_no_attention_across_documents(build, tokens, kind, changed):
    model, ids = build(kind), tokens(2, 16)
    cu_seqlens = torch.tensor([0, 9, 16, 20, 32], dtype=torch.int32)
    start, end = changed
    before = model(ids, cu_seqlens=cu_seqlens).flatten(0, 1)
    other = ids.clone().flatten()
    other[start:end] = (other[start:end] + 1) % 97
    after = model(other.view_as(ids), cu_seqlens=cu_seqlens).flatten(0, 1)
    moved = (before != after).any(-1)
    assert not moved[:start].any()
    assert not moved[end:].any()
    assert moved[start:end].all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_row_equals_its_documents_alone(build, tokens, kind):
    model, ids = build(kind), tokens(2, 20)
    bounds = [0, 3, 12, 20, 21, 40]
    packed = model(ids, cu_seqlens=torch.tensor(bounds, dtype=torch.int32)).flatten(0, 1)
    for start, end in pairwise(bounds):
        alone = model(ids.flatten()[None, start:end])[0]
        torch.testing.assert_close(packed[start:end], alone, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_sum_over_the_targets(build, tokens, kind):
    model, ids, labels = build(kind), tokens(2, 12), tokens(2, 12, seed=1)
    labels[:, ::3] = -100
    log_probabilities = model(ids).double().log_softmax(-1)
    targets = labels != -100
    expected = -log_probabilities[targets].gather(-1, labels[targets][:, None]).sum()
    got = model(ids, labels_BT=labels)
    assert (got.dtype, got.shape) == (torch.float32, ())
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)
    halves = sum(model(ids[i : i + 1], labels_BT=labels[i : i + 1]) for i in range(2))
    torch.testing.assert_close(got, halves, rtol=1e-5, atol=0)


def test_gathering_the_targets_changes_nothing(build, tokens, monkeypatch):
    model, ids, labels = build("bert"), tokens(2, 12), tokens(2, 12, seed=1)
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) > 0.2] = -100
    rows = []
    model.head.transform.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    gathered = model(ids, labels_BT=labels)
    assert rows == [int((labels != -100).sum())]
    monkeypatch.setattr(heads, "keep_targets", lambda hidden_ND, labels_N, target_rows: (hidden_ND, labels_N))
    ungathered = model(ids, labels_BT=labels)
    assert rows[1:] == [24]
    parameters = list(model.parameters())
    torch.testing.assert_close(gathered, ungathered, rtol=1e-6, atol=0)
    for a, b in zip(*(torch.autograd.grad(x, parameters) for x in (gathered, ungathered)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_no_target_gives_zero_and_finite_zero_gradients(build, tokens, kind):
    model, ids = build(kind), tokens(2, 8)
    loss = model(ids, labels_BT=torch.full_like(ids, -100))
    loss.backward()
    assert loss.item() == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("change", ["to_empty", "bf16", "copy"])
def test_the_tied_head_stays_tied(build, change):
    model = build("gpt")
    if change == "to_empty":
        with torch.device("meta"):
            model = LanguageModel(model.config)
        model.to_empty(device="cpu")
    elif change == "bf16":
        model.to(torch.bfloat16)
    else:
        model = copy.deepcopy(model)
    assert model.head.weight is model.embedding.token.weight
    assert "weight" in dict(model.head.named_parameters())
    assert "head.weight" not in dict(model.named_parameters())


def test_an_untied_head_has_its_own_matrix(build):
    model = build("gpt", tie_word_embeddings=False)
    assert model.head.weight is not model.embedding.token.weight
    assert not torch.equal(model.head.weight, model.embedding.token.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_need_to_be_there_only_while_their_module_runs(build, tokens, kind):
    """What an engine does that keeps parameters in pieces: gather before a module's forward, release after it."""
    model, ids, labels = build(kind), tokens(2, 12), tokens(2, 12, seed=1)
    expected_loss, expected_logits = model(ids, labels_BT=labels), model(ids)
    owners = [(m, [(p, p.data) for p in m.parameters(recurse=False)]) for m in model.modules()]
    for module, own in owners:

        def gather(*_, own=own):
            for parameter, whole in own:
                parameter.data = whole

        def release(*_, own=own):
            for parameter, _whole in own:
                parameter.data = torch.empty(0)

        release()
        module.register_forward_pre_hook(gather)
        module.register_forward_hook(release)
    with torch.no_grad():
        assert torch.equal(model(ids, labels_BT=labels), expected_loss)
        assert torch.equal(model(ids), expected_logits)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_stays_near_fp32(build, tokens, kind):
    model, ids, labels = build(kind, initializer_range=0.05), tokens(2, 32), tokens(2, 32, seed=1)
    fp32 = model(ids, labels_BT=labels)
    low = model.to(torch.bfloat16)(ids, labels_BT=labels)
    low.backward()
    torch.testing.assert_close(low, fp32, rtol=1e-2, atol=0)
    assert model(ids).dtype == torch.bfloat16


def test_dropout_acts_in_training_only(build, tokens):
    ids = tokens(1, 16)
    for field in ("dropout", "attention_dropout"):
        model = build("gpt", **{field: 0.5})
        assert torch.equal(model(ids), model(ids))
        model.train()
        assert not torch.equal(model(ids), model(ids))


def test_parameter_names_are_plain(build):
    names = {name for name, _ in build("gpt").named_parameters()}
    assert {"embedding.token.weight", "embedding.position.weight", "final_norm.weight", "final_norm.bias"} <= names
    for part in ("query", "key", "value", "output"):
        assert f"blocks.0.attention.{part}.weight" in names
    assert {"blocks.1.mlp.up.weight", "blocks.1.mlp.down.bias", "blocks.1.attention_norm.weight"} <= names
    names = {name for name, _ in build("bert").named_parameters()}
    assert {
        "embedding.token_type.weight",
        "head.transform.dense.weight",
        "head.transform.norm.bias",
        "head.bias",
    } <= names
    assert not any(name.startswith("final_norm") for name in names)


def test_what_the_model_cannot_do_is_refused(build, tokens):
    with pytest.raises(ValueError, match=r"65 tokens .* 64 learned positions"):
        build("gpt")(tokens(1, 65))
    build("modern")(tokens(1, 65))
    with pytest.raises(ValueError, match="token type embeddings"):
        build("gpt")(tokens(1, 4), token_types_BT=torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="num_attention_heads 5"):
        LanguageModel(ModelConfig(num_attention_heads=5))
