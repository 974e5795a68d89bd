"""Classifiers, answer spans, bodies with their poolers, and BERT's two heads, both ways."""

from dataclasses import asdict, replace

import pytest
import torch

from ingot.model.finetuning.task_model import TaskConfig
from ingot.model.huggingface.load import load
from ingot.model.huggingface.mapping.family import task_fields
from ingot.model.huggingface.save import save
from ingot.model.transformer import LanguageModel
from tests.model.huggingface_models import (
    CAUSAL,
    EXAMPLES,
    LENGTH,
    NAMES,
    OURS,
    TOLERANCE,
    agree,
    difference,
    ids_of,
    imported,
    made,
    opened,
    run_ours,
    run_theirs,
    theirs,
    types_of,
)

KINDS = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification", "span": "ForQuestionAnswering"}
KINDS |= {"features": "Model"}
AUTO = {kind: f"AutoModel{'' if kind == 'features' else name}" for kind, name in KINDS.items()}
ALL = [(family, kind) for family in EXAMPLES for kind in KINDS]
LABELS = ["yes", "no", "maybe"]


def head_of(family: str, kind: str) -> TaskConfig:
    """What a family's head is, by hand."""
    layer, pooling, bias = "none", "first", True
    if family in CAUSAL and kind == "sequence":
        pooling, bias = "last", False
    if family in ("bert", "roberta") and kind in ("sequence", "features"):
        layer = "tanh"
    if family == "modernbert" and kind != "features":
        layer = "transform"
    if kind == "features":
        return TaskConfig(kind=kind, layer=layer)
    labels = None if kind == "span" else LABELS
    return TaskConfig(kind, 2 if kind == "span" else 3, pooling=pooling, layer=layer, bias=bias, labels=labels)


def difference_of_heads(mine, other, family: str, kind: str) -> float:
    if kind != "sequence":
        cases = ("plain", "right", "packed")
        return max(agree(mine, other, family, case) for case in cases if family not in CAUSAL or case != "right")
    ids_BT = ids_of(6, LENGTH)
    types_BT, mask_BT = types_of(family, ids_BT), torch.ones_like(ids_BT, dtype=torch.bool)
    mask_BT[1, 50:] = mask_BT[3, 7:] = False
    ids_BT = ids_BT.masked_fill(~mask_BT, EXAMPLES[family].pad)
    expected = run_theirs(other, ids_BT, types_BT, attention_mask=mask_BT.long())
    return difference(run_ours(mine, ids_BT, types_BT, attention_mask_BS=mask_BT), expected)


@pytest.mark.parametrize(("family", "kind"), ALL)
def test_an_imported_head_gives_their_outputs(family, kind, tmp_path):
    names = {} if kind in ("span", "features") else {"id2label": dict(enumerate(LABELS))}
    other = theirs(family, NAMES[family] + KINDS[kind], **names)
    mine = imported(other, tmp_path)
    assert task_fields(mine.task) == task_fields(head_of(family, kind))
    assert difference_of_heads(mine, other, family, kind) <= TOLERANCE


@pytest.mark.parametrize(("family", "kind"), ALL)
def test_an_exported_head_gives_our_outputs_and_is_complete(family, kind, tmp_path):
    mine = made(OURS[family], head_of(family, kind))
    save(mine, tmp_path / "out", token_ids={"pad": EXAMPLES[family].pad})
    other = opened(tmp_path / "out", AUTO[kind])
    assert difference_of_heads(mine, other, family, kind) <= TOLERANCE
    if kind in ("sequence", "token"):
        assert other.config.id2label == dict(enumerate(LABELS))
        assert other.config.label2id == {name: i for i, name in enumerate(LABELS)}


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernbert_pools_as_its_settings_say(pooling, tmp_path):
    other = theirs("modernbert", "ModernBertForSequenceClassification", classifier_pooling=pooling)
    mine = imported(other, tmp_path / "theirs")
    save(mine, tmp_path / "back")
    again = opened(tmp_path / "back", "AutoModelForSequenceClassification")
    for each in (other, again):
        assert difference_of_heads(mine, each, "modernbert", "sequence") <= TOLERANCE


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_pooler_is_theirs(family, tmp_path):
    other = theirs(family, f"{NAMES[family]}Model")
    mine = imported(other, tmp_path)
    ids_BT = ids_of(6, LENGTH)
    with torch.no_grad():
        got = mine.pooled(mine(ids_BT))
        assert difference(got, other(ids_BT).pooler_output) <= TOLERANCE


def test_a_body_without_pooler_is_one(tmp_path):
    other = theirs("bert", "BertModel")
    other.pooler = None
    mine = imported(other, tmp_path / "theirs")
    assert mine.task.layer == "none"
    assert agree(mine, other, "bert", "plain") <= TOLERANCE
    with pytest.raises(ValueError, match=r"task\.layer is 'none' and would be 'tanh'"):
        save(mine, tmp_path / "out", family="bert")


def both_heads(model, ids_BT, types_BT):
    with torch.no_grad():
        hidden_BTD = model.hidden_states(ids_BT, token_types_BT=types_BT)
        return model.head(hidden_BTD), model.pair_head(hidden_BTD[:, 0])


@pytest.mark.parametrize("direction", ["import", "export"])
def test_pretraining_has_both_heads_and_their_loss(direction, tmp_path):
    if direction == "import":
        other = theirs("bert", "BertForPreTraining")
        mine = imported(other, tmp_path)
    else:
        mine = made(replace(OURS["bert"], pair_head=True))
        save(mine, tmp_path / "out")
        other = opened(tmp_path / "out", "AutoModelForPreTraining")
    ids_BT = ids_of(6, LENGTH)
    types_BT = types_of("bert", ids_BT)
    generator = torch.Generator().manual_seed(1)
    labels_BT = ids_BT.masked_fill(torch.rand(ids_BT.shape, generator=generator) < 0.8, -100)
    pairs_B = torch.tensor([0, 1, 1, 0, 1, -100])
    other.eval()
    with torch.no_grad():
        expected = other(ids_BT, token_type_ids=types_BT, labels=labels_BT, next_sentence_label=pairs_B)
        count = (labels_BT != -100).sum()
        loss = mine(
            ids_BT,
            labels_BT=labels_BT,
            token_types_BT=types_BT,
            pair_labels_B=pairs_B,
            pair_weight=float(count) / 5,
        )
    tokens_BTV, pairs_B2 = both_heads(mine, ids_BT, types_BT)
    assert difference(tokens_BTV, expected.prediction_logits) <= TOLERANCE
    assert difference(pairs_B2, expected.seq_relationship_logits) <= TOLERANCE
    torch.testing.assert_close(loss / count, expected.loss, atol=1e-5, rtol=1e-5)


def test_a_kind_takes_from_a_file_what_it_has(tmp_path):
    other = theirs("bert", "BertForPreTraining")
    other.save_pretrained(tmp_path)
    ids_BT = ids_of(6, LENGTH)
    masked = load(tmp_path, "language")
    assert isinstance(masked, LanguageModel)
    assert masked.pair_head is None
    assert difference(run_ours(masked, ids_BT), other(ids_BT).prediction_logits.detach()) <= TOLERANCE
    body = load(tmp_path, "features")
    assert torch.equal(body.head.layer.dense.weight, other.bert.pooler.dense.weight)


def test_a_new_head_stands_on_the_files_body(tmp_path):
    theirs("bert", "BertForPreTraining").save_pretrained(tmp_path)
    pretrained = load(tmp_path)
    made_of = lambda **options: load(tmp_path, "sequence", new_head=True, **options)  # noqa: E731
    model = made_of(labels=LABELS, seed=4)
    assert model.task == replace(head_of("bert", "sequence"), labels=LABELS, dropout=0.1)
    body = {name: value for name, value in pretrained.state_dict().items() if name.startswith(("embedding", "blocks"))}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in body.items())
    assert torch.equal(model.head.layer.dense.weight, pretrained.pair_head.pooler.weight), "the file's own pooler"
    weight = model.head.classifier.weight
    assert weight.shape == (3, 32)
    assert 0.01 < weight.std() < 0.03
    assert torch.equal(weight, made_of(labels=3, seed=4).head.classifier.weight)
    assert not torch.equal(weight, made_of(labels=3, seed=5).head.classifier.weight)


def test_a_new_head_makes_a_pooler_where_there_is_none_and_replaces_a_classifier(tmp_path):
    theirs("bert", "BertForMaskedLM").save_pretrained(tmp_path / "masked")
    with pytest.raises(ValueError, match=r"missing: bert\.pooler\.dense\.bias, .*classifier\.bias.*new_head") as error:
        load(tmp_path / "masked", "sequence")
    assert "cls.predictions" not in str(error.value)
    model = load(tmp_path / "masked", "sequence", new_head=True)
    assert 0.01 < model.head.layer.dense.weight.std() < 0.03
    theirs("bert", "BertForSequenceClassification", num_labels=5).save_pretrained(tmp_path / "five")
    assert load(tmp_path / "five", new_head=True, labels=2).head.classifier.weight.shape == (2, 32)
    assert load(tmp_path / "five").head.classifier.weight.shape == (5, 32)
    theirs("bert", "BertForSequenceClassification", num_labels=1).save_pretrained(tmp_path / "score")
    assert load(tmp_path / "score").task.problem == "regression"
    assert load(tmp_path / "score", new_head=True, labels=3).task.problem == "classes"
    with pytest.raises(ValueError, match="set new_head"):
        load(tmp_path / "five", labels=2)


@pytest.mark.parametrize(("theirs_", "ours"), [("regression", "regression"), ("multi_label_classification", "labels")])
def test_the_kind_of_problem_goes_both_ways(theirs_, ours, tmp_path):
    other = theirs("bert", "BertForSequenceClassification", problem_type=theirs_, num_labels=4)
    mine = imported(other, tmp_path / "theirs")
    assert mine.task.problem == ours
    save(mine, tmp_path / "back")
    assert opened(tmp_path / "back", "AutoModelForSequenceClassification").config.problem_type == theirs_
    assert asdict(load(tmp_path / "back").task) == asdict(mine.task)
