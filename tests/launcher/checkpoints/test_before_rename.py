"""Two runs that were made before options were renamed: they go on, and open, as they did then.

`before_rename/` holds a corpus, a GPT and a LoRA fine-tuning of it after 2 steps, their configurations, and in
expected.json what the code of that time gave in steps 3 and 4. Every renamed option stands in one of the two
configurations.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from ingot.data.tokenizers.huggingface_export import export_tokenizer
from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.training import train_sentencepiece
from ingot.launcher import checkpoint, evaluate, finetune, generate, predict, pretrain
from ingot.launcher.config import aliases
from ingot.launcher.runtime.exit_codes import BadInput

HERE = Path(__file__).parent / "before_rename"
EXPECTED = json.loads((HERE / "expected.json").read_text())


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    shutil.copytree(HERE, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.setattr(aliases, "_SAID", set())
    return tmp_path / "old"


@pytest.mark.parametrize(("name", "main"), [("gpt", pretrain.main), ("tagger", finetune.main)])
def test_a_run_goes_on_as_it_would_have(name, main, old, capsys):
    config = "pretrain.yaml" if name == "gpt" else "finetune.yaml"
    assert main(["--config", config, "--run.steps", "4", "--run.keep", "0"]) == 0
    said = capsys.readouterr()
    assert f"resumed from runs/{name}/checkpoints/step-00000002" in said.out + said.err
    assert f"note: {config} has old names, which are still read: run.keep is now run.keep_checkpoints; " in said.err
    assert "optimizer.clip_norm is now optimizer.max_grad_norm" in said.err
    assert "the command line has old names, which are still read: run.keep is now run.keep_checkpoints\n" in said.err
    records = [json.loads(line) for line in (old / f"runs/{name}/metrics.jsonl").read_text().splitlines()]
    trained = [record for record in records if record["kind"] == "train" and record["step"] > 2]
    expected = EXPECTED[name]["train"]
    for found, before in zip(trained, expected, strict=True):
        for key in ("step", "batch_fingerprint", "samples", "tokens", "learning_rate"):
            assert found[key] == before[key], key
        assert found["loss"] == pytest.approx(before["loss"], rel=1e-6)
        assert found["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-5)
    assert records[-1]["kind"] == "checkpoint"
    last = [record["loss"] for record in records if record["kind"] == "eval"][-1]
    assert last == pytest.approx(EXPECTED[name]["eval_loss"], rel=1e-6)
    if [record["loss"] for record in trained] == [record["loss"] for record in expected]:  # a processor of that kind
        manifest = json.loads((old / f"runs/{name}/checkpoints/step-00000004/manifest.json").read_text())
        digests = {tensor: entry["digest"] for tensor, entry in sorted(manifest["tensors"].items())}
        assert hashlib.sha256(json.dumps(digests).encode()).hexdigest() == EXPECTED[name]["digests"]


def test_a_pretrained_checkpoint_is_scored_and_continued_as_before(old, capsys):
    evaluate.main(["--checkpoint", "runs/gpt", "--corpus", "corpus", "--output", "scores.json"])
    assert json.loads(Path("scores.json").read_text())["loss"] == pytest.approx(EXPECTED["evaluate"], rel=1e-6)
    assert "note: checkpoint runs/gpt/checkpoints/step-00000002 has old names" in capsys.readouterr().err
    generate.main(["--checkpoint", "runs/gpt", "--prompt", "def ", "--temperature", "0", "--max_tokens", "12",
                   "--output", "texts.jsonl"])  # fmt: skip
    assert json.loads(Path("texts.jsonl").read_text())["text"] == EXPECTED["generate"]


def test_a_fine_tuned_checkpoint_predicts_as_before(old, capsys):
    predict.main(["--checkpoint", "runs/tagger", "--input", "train.conll", "--score", "true", "--output", "out.jsonl"])
    scores = json.loads(capsys.readouterr().out.splitlines()[0])
    assert {name: scores[name] for name in EXPECTED["scores"]} == pytest.approx(EXPECTED["scores"])
    found = [json.loads(line)["predicted"] for line in Path("out.jsonl").read_text().splitlines()]
    assert found[:4] == EXPECTED["predict"]


def test_its_checkpoints_are_intact_and_its_settings_are_compared_under_the_new_names(old, capsys):
    assert checkpoint.main(["verify", "runs/gpt", "runs/tagger"]) == 0
    assert pretrain.main(["--config", "pretrain.yaml", "--run.steps", "3", "--run.dir", "new"]) == 0
    capsys.readouterr()
    checkpoint.main(["diff", "runs/gpt", "new/gpt"])
    said = capsys.readouterr().out
    assert "setting run.steps: 2 and 3" in said
    assert "keep" not in said
    assert "model." not in said.replace("model/", "")


def test_its_exported_tokenizer_is_that_of_its_corpus_and_its_checkpoint(old):
    Path("exported").mkdir()
    export_tokenizer(load_tokenizer("runs/gpt/tokenizer"), Path("exported"), causal=True, chats=True)
    given = ["--checkpoint", "runs/gpt", "--tokenizer", "exported", "--corpus", "corpus", "--output", "scores.json"]
    evaluate.main(given)
    assert json.loads(Path("scores.json").read_text())["loss"] == pytest.approx(EXPECTED["evaluate"], rel=1e-6)
    shutil.copytree("corpus", "other_corpus")
    train_sentencepiece(["other text"] * 9, "other", 275)
    shutil.copy("other/tokenizer.model", "other_corpus/tokenizer/tokenizer.model")
    with pytest.raises(BadInput, match="other_corpus was made with another tokenizer"):
        evaluate.main([*given, "--corpus", "other_corpus"])
    template = Path("exported/chat_template.jinja")
    template.write_text(template.read_text() + "\n")
    with pytest.raises(BadInput, match="exported has another chat template than"):
        evaluate.main(given)
    with pytest.raises(BadInput, match="other is not the one that"):
        evaluate.main([*given, "--tokenizer", "other"])


def test_a_new_run_starts_from_its_weights(old, capsys):
    given = ["--config", "pretrain.yaml", "--run.name", "second", "--run.steps", "1", "--run.weights_from", "runs/gpt"]
    assert pretrain.main(given) == 0
    said = capsys.readouterr()
    assert "weights from runs/gpt/checkpoints/step-00000002" in said.out + said.err


def test_the_files_are_small():
    for folder in ("runs/gpt", "runs/tagger", "corpus"):
        assert sum(path.stat().st_size for path in (HERE / folder).rglob("*") if path.is_file()) < 300_000
