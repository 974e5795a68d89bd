"""The evaluate command: scores as in training, each token scored once, exact bytes, and refused options."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from ingot.data.corpus.shards import Corpus
from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.launcher import evaluate, pretrain
from ingot.launcher.inference.sliding_window import micro_batches, sliding_windows
from ingot.launcher.loading.language_model import load_for_inference
from ingot.launcher.runtime import exit_codes
from tests.launcher.runs import ROOT, launch, records, write_config

LEARNED = ["--model.positions", "learned"]


def trained(corpus, folder, objective, *more):
    config = write_config(folder, corpus, objective=objective)
    arguments = ["--config", config, "--parallel.engine", "fsdp", "--run.steps", 4, *more]
    assert pretrain.main([str(argument) for argument in arguments]) == exit_codes.DONE
    return folder / "runs/tiny"


@pytest.fixture(scope="module")
def gpt(corpus, tmp_path_factory):
    return trained(corpus, tmp_path_factory.mktemp("gpt"), "clm", "--parallel.precision", "fp32", *LEARNED)


@pytest.fixture(scope="module")
def bert(corpus, tmp_path_factory):
    more = ["--parallel.precision", "bf16", "--data.mlm_probability", 0.3, "--run.seed", 11, *LEARNED]
    more += ["--data.mask_unit", "word"]
    return trained(corpus, tmp_path_factory.mktemp("bert"), "mlm", *more)


@pytest.fixture
def run(tmp_path):
    """Runs the command and returns its scores."""

    def _run(*arguments: object) -> dict:
        output = tmp_path / "scores.json"
        assert evaluate.main([str(a) for a in [*arguments, "--output", output]]) == exit_codes.DONE
        return json.loads(output.read_text())

    return _run


def refusal(*arguments: object) -> str:
    with pytest.raises(exit_codes.BadInput) as caught:
        evaluate.main([str(argument) for argument in arguments])
    return str(caught.value)


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_a_corpus_scores_as_in_the_training_run(run, corpus, kind, request):
    folder = request.getfixturevalue(kind)
    expected = records(folder, "eval")[-1]
    found = run("--checkpoint", folder, "--corpus", corpus, "--batch_size", 5)
    names = ["loss", "perplexity", "unigram_entropy"] + ["bits_per_byte"] * (kind == "gpt")
    tolerance = 1e-6 if kind == "gpt" else 1e-4  # the BERT computes in bf16, in batches of another size
    assert {name: found[name] for name in names} == pytest.approx({n: expected[n] for n in names}, rel=tolerance)
    assert found["dtype"] == {"gpt": "float32", "bert": "bfloat16"}[kind]
    assert ("bits_per_byte" in found) == (kind == "gpt")
    part = run("--checkpoint", folder, "--corpus", corpus, "--max_samples", 3)
    assert part["num_tokens"] == 3 * 32
    assert part["loss"] != found["loss"]


def test_the_command_prints_a_few_lines_and_one_of_json(gpt, corpus):
    result = launch("python", "--checkpoint", gpt, "--corpus", corpus, "--max_samples", 4, script="evaluate")
    *lines, last = result.stdout.splitlines()
    scores = json.loads(last)
    assert len(lines) == 3
    assert f"loss {scores['loss']:.4f} nats per token over {scores['num_targets']}" in lines[1]
    assert f"{scores['bits_per_byte']:.4f} bits per byte" in lines[1]


def test_help_answers_without_importing_torch():
    code = "import sys; from launcher.evaluate import main\ntry: main(['--help'])\n"
    code += "except SystemExit as end: sys.exit(3 if 'torch' in sys.modules else end.code)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--stride" in result.stdout


@torch.no_grad()
def naive(folder, documents: list[list[int]], length: int, stride: int) -> tuple[float, int]:
    """Nats and number of targets, computed token by token. The window of a token is the first one that contains it."""
    model, _ = load_for_inference(str(folder), None, torch.device("cpu"))
    nats = count = 0
    for ids in documents:
        for target in range(1, len(ids)):
            begin = max(0, -(-(target - length) // stride)) * stride
            logits = model(torch.tensor([ids[begin:target]]))[0, -1]
            nats -= float(logits.double().log_softmax(-1)[ids[target]])
            count += 1
    return nats, count


TEXTS = ["def f(x):\n    return x  # \N{GREEK SMALL LETTER PI}, na\u00efve\r\n" * 4, "import os\n", "\ufeffx"]


@pytest.mark.parametrize("stride", [5, 32, None])
def test_each_token_of_a_text_is_scored_once_in_enough_context(run, gpt, tmp_path, stride):
    paths = [tmp_path / f"{number}.txt" for number in range(len(TEXTS))]
    for path, text in zip(paths, TEXTS, strict=True):
        path.write_bytes(text.encode())
    found = run(
        "--checkpoint", gpt, "--text", json.dumps(list(map(str, paths))), *(["--stride", stride] if stride else [])
    )
    _, tokenizer = load_for_inference(str(gpt), None, torch.device("cpu"))
    plain = [text.removeprefix("\ufeff") for text in TEXTS]
    documents = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in plain]
    assert max(map(len, documents)) > 3 * 32
    nats, count = naive(gpt, documents, 32, stride or 16)
    num_bytes = sum(len(text.encode()) for text in plain)
    assert (found["num_targets"], found["num_bytes"], found["stride"]) == (count, num_bytes, stride or 16)
    assert found["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-5)


def test_more_context_is_another_score_and_lines_of_json_are_documents(run, gpt, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:2]))
    scores = [run("--checkpoint", gpt, "--text", path, "--stride", stride) for stride in (1, 32)]
    assert scores[0]["num_targets"] == scores[1]["num_targets"]
    assert scores[0]["loss"] != scores[1]["loss"]
    assert "2 documents" in scores[0]["how"]


def test_the_documents_of_a_corpus_in_windows(run, gpt, corpus):
    found = run("--checkpoint", gpt, "--corpus", corpus, "--stride", 8)
    opened = Corpus.open(corpus, "validation")
    assert found["num_targets"] == opened.num_tokens - opened.num_documents
    assert found["num_bytes"] == opened.text_bytes
    assert found["bits_per_byte"] == pytest.approx(
        found["loss"] * found["num_targets"] / math.log(2) / opened.text_bytes
    )


def test_the_mask_depends_only_on_the_seed(run, bert, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXTS[0])
    common = ["--checkpoint", bert, "--text", path, "--dtype", "float32"]
    first = run(*common)
    assert (first["seed"], first["mlm_probability"]) == (11, 0.3)
    assert "not comparable with the perplexity of a causal model" in first["how"]
    again = run(*common, "--batch_size", 1)
    assert again["num_targets"] == first["num_targets"]
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert run(*common, "--seed", 12)["loss"] != pytest.approx(first["loss"], rel=1e-3)
    assert run(*common, "--mlm_probability", 0.6)["num_targets"] > 1.5 * first["num_targets"]


def test_what_is_refused(gpt, bert, corpus, tmp_path):
    text, odd = tmp_path / "a.txt", tmp_path / "odd.txt"
    text.write_text("some text")
    odd.write_bytes(b"\xff\xfe\xff")
    (tmp_path / "empty.txt").write_text("")
    assert "holds no checkpoint" in refusal("--checkpoint", tmp_path / "none", "--text", text)
    assert "neither of corpus and text" in refusal("--checkpoint", gpt)
    assert "both of corpus and text" in refusal("--checkpoint", gpt, "--text", text, "--corpus", corpus)
    assert "no split 'test'" in refusal("--checkpoint", gpt, "--corpus", corpus, "--split", "test")
    assert "does not exist" in refusal("--checkpoint", gpt, "--corpus", tmp_path / "none")
    assert "is not UTF-8" in refusal("--checkpoint", gpt, "--text", odd)
    assert "No such file" in refusal("--checkpoint", gpt, "--text", tmp_path / "none.txt")
    assert "nothing to score" in refusal("--checkpoint", gpt, "--text", tmp_path / "empty.txt")
    assert "more than the model's 64 positions" in refusal("--checkpoint", gpt, "--text", text, "--sequence_length", 65)
    assert "stride 33 would leave tokens out" in refusal("--checkpoint", gpt, "--text", text, "--stride", 33)
    assert "stride is for causal models" in refusal("--checkpoint", bert, "--text", text, "--stride", 8)
    assert "masked models" in refusal("--checkpoint", gpt, "--text", text, "--seed", 3)
    message = refusal("--checkpoint", gpt, "--text", text, "--stride", 0, "--batch_size", 0, "--mlm_probability", 1)
    assert all(part in message for part in ("stride is 0", "batch_size is 0", "mlm_probability is 1"))
    assert "did you mean stride" in refusal("--checkpoint", gpt, "--srtide", 3)


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 8, 9, 10, 17, 30])
@pytest.mark.parametrize(("length", "stride"), [(8, 8), (8, 3), (8, 1), (1, 1)])
def test_windows_score_each_token_once(num_tokens, length, stride):
    tokens, seen = np.arange(100, 100 + num_tokens), []
    for window in sliding_windows(tokens, length, stride):
        assert 0 < len(window.input_ids) == len(window.labels) <= length
        for position, label in enumerate(window.labels.tolist()):
            if label == IGNORE_INDEX:
                continue
            seen.append(label)
            context = window.input_ids[: position + 1]
            assert context.tolist() == list(range(label - len(context), label))
            assert len(context) >= min(label - 100, length - stride + 1)
    assert seen == list(range(101, 100 + num_tokens))


def test_rows_hold_several_documents_and_no_row_is_too_long():
    documents = [np.arange(100 * n, 100 * n + length) for n, length in enumerate([3, 9, 2, 2, 5, 20, 2], start=1)]
    windows = [window for tokens in documents for window in sliding_windows(tokens, 8, 8)]
    batches = list(micro_batches(windows, 8, 2, pad_id=0))
    assert all(batch["input_ids"].shape[0] <= 2 for batch in batches)
    assert sum(batch["input_ids"].shape[0] for batch in batches) == 6  # 2 + (8) + (1 1 4) + (8) + (8) + (3 1)
    labels = np.concatenate([batch["labels"].ravel() for batch in batches])
    assert labels[labels != IGNORE_INDEX].tolist() == [token for tokens in documents for token in tokens[1:].tolist()]
    for batch in batches:
        begins = batch["cu_seqlens"][:-1]
        assert (batch["positions"].ravel()[begins] == 0).all()
        assert batch["cu_seqlens"][-1] == batch["input_ids"].size
