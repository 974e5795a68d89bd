"""What fine-tuning made opens elsewhere: classifiers in transformers, additions in peft, with equal logits."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from ingot.data.tasks.instruction import end_ids
from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher import export, predict
from ingot.launcher.finetuning.finetune_run import task_settings
from ingot.launcher.loading.base_model import find_tokenizer
from ingot.launcher.loading.finetuned_model import open_finetuned
from ingot.launcher.loading.language_model import load_for_inference
from ingot.launcher.runtime.exit_codes import BadInput
from tests.launcher.finetune_runs import CPU, run
from tests.launcher.tiny_models import write_task


def test_an_exported_classifier_opens_in_transformers_with_its_labels(bert, tmp_path, capsys, monkeypatch):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    task = [*write_task("classification", tmp_path), "--task.label_names", '["negative=bad one"]']
    run(bert, tmp_path, task, "--run.steps", "5")
    with monkeypatch.context() as without:  # what nothing was added to needs neither
        for package in ("peft", "peft.tuners.tuners_utils", "torchao", "torchao.quantization"):
            without.setitem(sys.modules, package, None)
        export.main(["--checkpoint", str(tmp_path / "runs/run"), "--output", str(tmp_path / "out")])
        with pytest.raises(BadInput, match=r"int8 weights needs the package torchao: run .* -m pip install .*int8"):
            predict.main(["--checkpoint", str(tmp_path / "runs/run"), "--text", "film", "--int8", "weights"])
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.id2label == {0: "bad one", 1: "positive"}
    predict.main(["--checkpoint", str(tmp_path / "runs/run"), "--input", task[5], "--score", "true"])
    assert "bad one" in capsys.readouterr().out
    check_logits(model.eval(), AutoTokenizer.from_pretrained(tmp_path / "out"), tmp_path / "runs/run")


def test_an_exported_chooser_opens_in_transformers(bert, tmp_path):
    from transformers import AutoModelForMultipleChoice

    from ingot.model.huggingface.load import load

    run(bert, tmp_path, write_task("multiple_choice", tmp_path), "--run.steps", "5")
    export.main(["--checkpoint", str(tmp_path / "runs/run"), "--output", str(tmp_path / "out")])
    theirs, info = AutoModelForMultipleChoice.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    found = open_finetuned(str(tmp_path / "runs/run"), CPU)
    template = found.tokenizer.template(pair=True)
    texts = [found.tokenizer.encode(text) for text in ("the film was", "great music", "awful actors", "the story")]
    framed = [template.apply(texts[0], ending) for ending in texts[1:]]
    length = max(len(ids) for ids, _ in framed)
    ids, types = (torch.tensor([[*each[n], *[0] * (length - len(each[n]))] for each in framed]) for n in range(2))
    shown = torch.tensor([[True] * len(each[0]) + [False] * (length - len(each[0])) for each in framed])
    with torch.no_grad():
        given = {"input_ids": ids[None], "token_type_ids": types[None], "attention_mask": shown[None].long()}
        expected = theirs.eval()(**given).logits[0]
        for model in (found.model, load(tmp_path / "out")):
            ours = model(ids, token_types_BT=types, attention_mask_BS=shown)
            torch.testing.assert_close(ours[:, 0], expected, atol=1e-5, rtol=0)


def test_a_pipeline_finds_the_same_entities_with_the_settings_of_the_docs(bert, tmp_path):
    """docs/export.md: "first" where words have no punctuation inside; else the label of each word's first token."""
    from seqeval.metrics.sequence_labeling import get_entities
    from transformers import pipeline

    task = write_task("token_classification", tmp_path)
    run(bert, tmp_path, task, "--run.steps", 60, "--optimizer.learning_rate", "1e-2")
    source = ["--checkpoint", str(tmp_path / "runs/run")]
    export.main([*source, "--output", str(tmp_path / "out")])
    plain = ["anna lives in rome with carlo", "bertha emilia was very zzz in cairo quito", "gustavs music dora"]
    inner = ["an.na lives in rome:dora with c,arl", "u.s. dora: x.y.z emil, romes .a"]
    found = {}
    for text in plain + inner:
        predict.main([*source, "--text", text, "--output", str(tmp_path / "o.jsonl")])
        labels = json.loads((tmp_path / "o.jsonl").read_text())["predicted"]
        words = [match.span() for match in re.finditer("[^ ]+", text)]
        entities = [(kind, words[one][0], words[last][1]) for kind, one, last in get_entities(labels)]
        found[text] = dict(zip([begin for begin, _ in words], labels, strict=True)), entities
    assert sum(len(entities) for _, entities in found.values()) > 8
    theirs = pipeline("token-classification", model=str(tmp_path / "out"))
    firsts = {
        text: [(e["entity_group"], e["start"], e["end"]) for e in theirs(text, aggregation_strategy="first")]
        for text in found
    }
    assert all(firsts[text] == found[text][1] for text in plain)
    assert any(firsts[text] != found[text][1] for text in inner), "the docs could promise more"
    for text, (labels, _) in found.items():
        tokens = theirs(text, aggregation_strategy="none", ignore_labels=[])
        assert {token["start"]: token["entity"] for token in tokens if token["start"] in labels} == labels


@pytest.mark.parametrize(("turn_end", "expected"), [("[SEP]", [3, 7]), ("[MASK]", [3, 7, 4])])
def test_template_and_ends_travel_from_a_released_model_to_the_export(turn_end, expected, gpt2, tmp_path):
    """Unchanged, unless the template ends a turn with a token that the settings do not name."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    shutil.copytree(gpt2, tmp_path / "base")
    template = "{% for m in messages %}{{ m.role }} : {{ m.content }} " + turn_end + "{% endfor %}"
    template += "{% if add_generation_prompt %}assistant :{% endif %}"
    ends = [3, 7]
    texts = {
        "chat_template.jinja": template,
        "generation_config.json": json.dumps({"eos_token_id": ends, "temperature": 0.6, "do_sample": True}),
        "additional_chat_templates/tools.jinja": "{{ tools }}",
    }
    (tmp_path / "base/additional_chat_templates").mkdir()
    for name, text in texts.items():
        (tmp_path / "base" / name).write_text(text)
    config = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps({**config, "eos_token_id": ends}))
    chat = [{"role": "user", "content": "the film ?"}, {"role": "assistant", "content": "good"}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    task = ["--task.kind", "instruction", "--task.train", str(tmp_path / "train.jsonl")]
    run(tmp_path / "base", tmp_path, [*task, "--task.text_columns", "[messages]"], "--run.steps", "1")
    found = open_finetuned(str(tmp_path / "runs/run"), CPU)
    assert found.tokenizer.end_ids == (3, 7)
    assert end_ids(task_settings(found.config), found.tokenizer) == tuple(expected)
    data = found.kind.read(str(tmp_path / "train.jsonl"), task_settings(found.config), found.tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "base").apply_chat_template(chat)["input_ids"]
    assert data.examples[0].ids.tolist() == theirs
    export.main(["--checkpoint", str(tmp_path / "runs/run"), "--output", str(tmp_path / "out")])
    for name, text in texts.items():
        if expected == ends or name != "generation_config.json":
            assert (tmp_path / "out" / name).read_text() == text
    assert AutoConfig.from_pretrained(tmp_path / "out").eos_token_id == expected
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.eos_token_id, generation.temperature) == (expected, 0.6)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(chat)["input_ids"] == theirs
    assert load_for_inference(str(tmp_path / "out"), None, CPU)[1].sha256 == found.tokenizer.sha256


def test_another_tokenizer_does_not_lose_the_ends_of_the_model(gpt2, tmp_path):
    shutil.copytree(gpt2, tmp_path / "base")
    (tmp_path / "base/generation_config.json").write_text('{"eos_token_id": [7, 3]}')
    load_tokenizer(gpt2).save(tmp_path / "other")
    given: list[Tokenizer] = [find_tokenizer(str(tmp_path / "base"), str(tmp_path / "other"))]
    given.append(load_for_inference(str(tmp_path / "base"), str(tmp_path / "other"), CPU)[1])
    for tokenizer in given:
        assert tokenizer.end_ids == (7, 3)
        tokenizer.save(tmp_path / "saved")
        assert load_tokenizer(tmp_path / "saved").end_ids == (7, 3)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "adalora", "ia3"])
def test_an_adapter_opens_in_peft_and_merges(family, method, bert, gpt2, tmp_path):
    import peft
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = {"bert": bert, "gpt2": gpt2}[family]
    targets = ["--method.target_modules", "[query, value, output, down]"] if method != "ia3" else []
    if family == "gpt2" and method == "ia3":
        targets = ["--method.target_modules", "[down]"]
    task = write_task("classification", tmp_path)
    run(base, tmp_path, task, "--run.steps", "5", "--method.kind", method, *targets)
    source = tmp_path / "runs/run"
    export.main(["--checkpoint", str(source), "--output", str(tmp_path / "adapter"), "--adapter", "true"])
    theirs = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    theirs.config.pad_token_id = 0
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    check_logits(theirs, AutoTokenizer.from_pretrained(base), source)
    export.main(["--checkpoint", str(source), "--output", str(tmp_path / "merged")])
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    merged.config.pad_token_id = 0
    check_logits(merged, AutoTokenizer.from_pretrained(base), source)


@pytest.mark.parametrize(
    ("method", "kind"),
    [("prompt_tuning", "classification"), ("p_tuning", "instruction"), ("prefix_tuning", "instruction")],
)
def test_learned_tokens_open_in_peft(method, kind, gpt2, tmp_path):
    import peft
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    task = write_task(kind, tmp_path)
    run(gpt2, tmp_path, task, "--run.steps", "5", "--method.kind", method, "--method.num_virtual_tokens", "3")
    source = tmp_path / "runs/run"
    export.main(["--checkpoint", str(source), "--output", str(tmp_path / "adapter"), "--adapter", "true"])
    if kind == "classification":
        theirs = AutoModelForSequenceClassification.from_pretrained(gpt2, num_labels=2)
        theirs.config.pad_token_id = 0
    else:
        theirs = AutoModelForCausalLM.from_pretrained(gpt2)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    check_logits(theirs, AutoTokenizer.from_pretrained(gpt2), source, learned=3)


@pytest.mark.parametrize(
    ("family", "method", "message"),
    [
        ("bert", "prompt_tuning", "peft puts virtual tokens first"),
        ("gpt2", "prefix_tuning", "prefix tuning only for language models"),
    ],
)
def test_learned_tokens_that_peft_does_not_know_are_refused(family, method, message, bert, gpt2, tmp_path):
    base = {"bert": bert, "gpt2": gpt2}[family]
    learned = ["--method.kind", method, "--method.num_virtual_tokens", "3"]
    run(base, tmp_path, write_task("classification", tmp_path), "--run.steps", "2", *learned)
    options = ["--checkpoint", str(tmp_path / "runs/run"), "--output", str(tmp_path / "adapter"), "--adapter", "true"]
    with pytest.raises(BadInput, match=message):
        export.main(options)
    assert not (tmp_path / "adapter").exists()


def check_logits(theirs, tokenizer, run_folder: Path, learned: int = 0) -> None:
    found = open_finetuned(str(run_folder), CPU)
    for text in ("the film was great and lovely", "awful music"):
        ids, _ = found.tokenizer.template(pair=False).apply(found.tokenizer.encode(text))
        ids = torch.tensor(ids)[None]
        with torch.no_grad():
            ours = found.model(torch.cat([-1 - torch.arange(learned), ids[0]])[None])
            logits = theirs(input_ids=ids).logits
        ours = ours[:, -ids.shape[1] :] if ours.ndim == 3 else ours  # at the text's own tokens
        logits = logits[:, -ids.shape[1] :] if logits.ndim == 3 else logits
        assert torch.allclose(ours, logits, atol=1e-5), (ours, logits)


def test_texts_end_in_the_export_of_a_classifier_as_they_did_in_training(corpus, tmp_path):
    """A GPT with a tokenizer of Ingot's own: texts have no end token but for a classifier."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from ingot.launcher import pretrain
    from tests.launcher.runs import write_config

    config = write_config(tmp_path / "base", corpus)
    assert pretrain.main(["--config", str(config), "--run.steps", "2", "--parallel.engine", "fsdp"]) == 0
    run(tmp_path / "base/runs/tiny", tmp_path, write_task("classification", tmp_path), "--run.steps", "5")
    export.main(["--checkpoint", str(tmp_path / "runs/run"), "--output", str(tmp_path / "out")])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    found = open_finetuned(str(tmp_path / "runs/run"), CPU).tokenizer
    for text in ("the film", "awful music"):
        assert tokenizer(text)["input_ids"] == list(found.template(pair=False).apply(found.encode(text))[0])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    check_logits(model.eval(), tokenizer, tmp_path / "runs/run")
