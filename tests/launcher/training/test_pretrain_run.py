"""Whole runs, started with each launcher as a user does."""

import json
import math
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ingot.launcher.config.parser import parse
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.training.build import reader_options
from ingot.launcher.training.resume import data_stamp
from tests.launcher.runs import command, environment, launch, records, write_config

LAYOUTS = [
    pytest.param("deepspeed 1", "zero", 3, "bf16", marks=pytest.mark.slow),
    pytest.param("deepspeed 2", "zero", 1, "bf16", marks=pytest.mark.slow),
    ("deepspeed 2", "zero", 1, "fp32"),
    pytest.param("torchrun 2", "zero", 0, "bf16", marks=pytest.mark.slow),
    pytest.param("torchrun 2", "fsdp", 0, "bf16", marks=pytest.mark.slow),
    ("torchrun 2", "fsdp", 0, "fp32"),
    pytest.param("deepspeed 2", "zero", 3, "fp32", marks=pytest.mark.slow),
    pytest.param("torchrun 2", "zero", 2, "fp32", marks=pytest.mark.slow),
    ("python", "zero", 1, "fp32"),
]
SHARED = [
    pytest.param("torchrun 4", ["fsdp", "--parallel.data_shard", 1], marks=pytest.mark.slow),
    ("deepspeed 2", ["zero", "--parallel.zero_stage", 3]),
]
TOLERANCE = {"bf16": 1e-3, "fp32": 1e-5}  # of the first 20 losses, relative

TRAIN_KEYS = {
    "kind", "step", "loss", "grad_norm", "learning_rate", "tokens", "samples", "batch_fingerprint", "substituted",
    "step_seconds", "data_seconds", "tokens_per_second", "tflops_per_device", "mfu", "peak_memory_bytes", "time",
    "needed_tflops_per_device", "needed_mfu",
}  # fmt: skip


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run)]


def fingerprints(run: Path) -> list[str]:
    return [record["batch_fingerprint"] for record in records(run)]


@pytest.fixture(scope="module")
def reference(corpus, tmp_path_factory):
    """A run of one process with the torch engine and 20 steps, for each precision and objective; made when needed."""
    done = {}

    def run(precision: str, objective: str = "clm") -> Path:
        if (precision, objective) not in done:
            folder = tmp_path_factory.mktemp("reference")
            config = write_config(folder, corpus, objective=objective)
            launch("python", "--config", config, "--parallel.engine", "fsdp", "--parallel.precision", precision)
            done[precision, objective] = folder / "runs/tiny"
        return done[precision, objective]

    return run


@pytest.mark.distributed
@pytest.mark.parametrize(("launcher", "engine", "stage", "precision"), LAYOUTS)
def test_every_launcher_and_engine_trains_the_same_model(
    reference, corpus, tmp_path, launcher, engine, stage, precision
):
    config = write_config(tmp_path, corpus)
    layout = ["--parallel.engine", engine, "--parallel.zero_stage", stage, "--parallel.precision", precision]
    launch(launcher, "--config", config, *layout)
    run, expected = tmp_path / "runs/tiny", reference(precision)
    assert fingerprints(run) == fingerprints(expected)
    assert losses(run) == pytest.approx(losses(expected), rel=TOLERANCE[precision])
    assert losses(run)[-1] < losses(run)[0] - 0.5
    (evaluation,), (expected_evaluation,) = records(run, "eval"), records(expected, "eval")
    for score in ("loss", "bits_per_byte", "unigram_entropy"):
        assert evaluation[score] == pytest.approx(expected_evaluation[score], rel=TOLERANCE[precision]), score


@pytest.mark.distributed
@pytest.mark.parametrize(("launcher", "engine"), SHARED)
def test_tensor_ranks_share_each_layer_and_read_the_same_data(reference, corpus, tmp_path, launcher, engine):
    config = write_config(tmp_path, corpus)
    layout = ["--parallel.engine", *engine, "--parallel.tensor", 2, "--parallel.precision", "fp32"]
    launch(launcher, "--config", config, *layout)
    run, expected = tmp_path / "runs/tiny", reference("fp32")
    assert fingerprints(run) == fingerprints(expected)
    assert losses(run) == pytest.approx(losses(expected), rel=TOLERANCE["fp32"])
    (evaluation,), (expected_evaluation,) = records(run, "eval"), records(expected, "eval")
    assert evaluation["loss"] == pytest.approx(expected_evaluation["loss"], rel=TOLERANCE["fp32"])
    assert records(run)[-1]["tokens"] == records(expected)[-1]["tokens"]


@pytest.mark.distributed
@pytest.mark.parametrize("launcher", ["deepspeed 2", pytest.param("torchrun 2", marks=pytest.mark.slow)])
def test_bert_trains_under_the_same_commands_with_the_same_masks(reference, corpus, tmp_path, launcher):
    config = write_config(tmp_path, corpus, objective="mlm")
    launch(launcher, "--config", config, "--parallel.precision", "fp32")
    run, expected = tmp_path / "runs/tiny", reference("fp32", "mlm")
    assert fingerprints(run) == fingerprints(expected)
    assert losses(run) == pytest.approx(losses(expected), rel=TOLERANCE["fp32"])


def test_sentence_pairs_add_their_mean_loss_to_that_of_the_masks(reference, corpus, tmp_path):
    config = write_config(tmp_path, corpus, objective="mlm")
    pairs = ["--data.sentence_pairs", "nsp", "--model.pair_head", "true", "--model.type_vocab_size", "2"]
    length = ["--run.steps", "null", "--run.tokens", 2 * 8 * 32]
    launch("python", "--config", config, "--parallel.engine", "fsdp", *length, *pairs)
    assert "  steps: 2\n  epochs: null\n  tokens: null\n" in (tmp_path / "runs/tiny/config.yaml").read_text()
    plain = losses(reference("fp32", "mlm"))[0]
    assert losses(tmp_path / "runs/tiny")[0] == pytest.approx(plain + math.log(2), abs=0.15)  # a guess
    log = (tmp_path / "runs/tiny/log.txt").read_text()
    assert "the warm-up (optimizer.warmup_steps 5) is not over before the end of the run (2 steps)" in log


@pytest.mark.slow
def test_loss_terms_are_the_same_under_zero_3(reference, corpus, tmp_path):
    """The terms are part of the training loss only; an evaluation reports the cross-entropy."""
    extra = ["--run.steps", 3, "--parallel.precision", "fp32", "--optimizer.lr_decay_steps", 20]
    extra += ["--loss.z_loss", 0.01, "--loss.label_smoothing", 0.1]
    runs = {}
    for launcher, engine in (("python", "fsdp"), ("deepspeed 2", "zero")):
        config = write_config(tmp_path / engine, corpus)
        launch(launcher, "--config", config, "--parallel.engine", engine, "--parallel.zero_stage", 3, *extra)
        runs[engine] = tmp_path / engine / "runs/tiny"
    plain = losses(reference("fp32"))[:3]
    for one, other, without in zip(losses(runs["fsdp"]), losses(runs["zero"]), plain, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
        assert one > without + 0.2
    evaluated = [records(run, "eval")[-1]["loss"] for run in runs.values()]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-5)
    assert evaluated[0] < losses(runs["fsdp"])[-1]


@pytest.mark.parametrize(("engine", "dropout"), [pytest.param("zero", 0.0, marks=pytest.mark.slow), ("fsdp", 0.1)])
def test_ten_steps_and_ten_more_are_twenty_to_the_last_bit(corpus, tmp_path, engine, dropout):
    config = write_config(tmp_path, corpus)
    common = ["--config", config, "--parallel.engine", engine, "--model.dropout", dropout]
    launch("python", *common, "--run.name", "straight")
    launch("python", *common, "--run.name", "parts", "--run.steps", 10)
    launch("python", *common, "--run.name", "parts", "--run.steps", 20)
    straight, parts = tmp_path / "runs/straight", tmp_path / "runs/parts"
    assert [r["step"] for r in records(parts)] == list(range(1, 21))
    for key in ("loss", "grad_norm", "learning_rate", "batch_fingerprint", "tokens", "samples"):
        assert [r[key] for r in records(parts)] == [r[key] for r in records(straight)], key
    digests = [
        {
            name: entry["digest"]
            for name, entry in json.loads((run / "checkpoints/step-00000020/manifest.json").read_text())[
                "tensors"
            ].items()
        }
        for run in (straight, parts)
    ]
    assert digests[0] == digests[1]


@pytest.mark.distributed
def test_a_run_continues_in_another_layout(reference, corpus, tmp_path):
    config = write_config(tmp_path, corpus)
    fp32 = ["--config", config, "--parallel.precision", "fp32"]
    launch("deepspeed 2", *fp32, "--run.steps", 10, "--parallel.zero_stage", 3)
    launch("python", *fp32, "--parallel.engine", "fsdp")
    assert fingerprints(tmp_path / "runs/tiny") == fingerprints(reference("fp32"))
    assert losses(tmp_path / "runs/tiny") == pytest.approx(losses(reference("fp32")), rel=1e-5)


def test_metrics_keep_the_contract(reference):
    run = reference("fp32")
    lines = records(run)
    assert set(lines[0]) == TRAIN_KEYS
    assert [line["samples"] for line in lines] == [8 * step for step in range(1, 21)]
    assert [line["tokens"] for line in lines] == [8 * 32 * step for step in range(1, 21)]
    assert [line["learning_rate"] for line in lines[:6]] == pytest.approx([n * 1e-2 / 5 for n in range(6)])
    assert 1e-3 < lines[-1]["learning_rate"] < 1.1e-3  # near the floor, which the schedule has after its 20 steps
    assert lines[0]["mfu"] is None
    (evaluation,) = records(run, "eval")
    assert evaluation["loss"] < evaluation["unigram_entropy"] + 1.0
    assert [line["step"] for line in records(run, "checkpoint")] == [10, 20]
    assert "exported, it opens in transformers as LlamaForCausalLM (llama)" in (run / "log.txt").read_text()
    for name in ("config.yaml", "log.txt", "tokenizer", "checkpoints/LATEST"):
        assert (run / name).exists()


def test_tensorboard_shows_loss_learning_rate_and_speed(reference):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(reference("fp32") / "tensorboard"))
    board.Reload()
    for tag in ("train/loss", "train/optimizer/learning_rate", "train/speed/tokens_per_second"):
        assert [event.step for event in board.Scalars(tag)] == list(range(1, 21))
    assert [event.step for event in board.Scalars("eval/loss")] == [20]


@pytest.mark.distributed
@pytest.mark.parametrize("launcher", ["python", "torchrun 2"])
def test_a_request_to_stop_saves_and_the_next_start_continues(reference, corpus, tmp_path, launcher):
    config = write_config(tmp_path, corpus)
    arguments = ["--config", config, "--parallel.precision", "fp32", "--run.save_every", "0", "--run.steps"]
    process = subprocess.Popen(
        [*command(launcher), *map(str, arguments), "100000"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    run = tmp_path / "runs/tiny"
    deadline = time.monotonic() + 120
    while not (run.exists() and (run / "metrics.jsonl").exists() and len(records(run)) >= 3):
        assert time.monotonic() < deadline, "no step was done"
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=60)
    assert code == 75 if launcher == "python" else code != 0  # torchrun reports its own code
    stopped_at = records(run, "checkpoint")[-1]["step"]
    assert records(run)[-1]["step"] == stopped_at
    launch("python", *arguments, stopped_at + 2)
    assert [r["step"] for r in records(run)] == list(range(1, stopped_at + 3))


def test_text_is_generated_from_a_run(reference):
    run = reference("fp32")
    arguments = ["--checkpoint", run, "--prompt", "def ", "--max_tokens", 20]
    greedy = [launch("python", *arguments, "--temperature", 0, script="generate").stdout for _ in range(2)]
    assert greedy[0] == greedy[1]
    assert greedy[0].startswith("def ")
    drawn = launch("python", *arguments, "--top_k", 50, "--top_p", 0.95, "--seed", 3, script="generate").stdout
    assert drawn.startswith("def ")
    assert drawn != greedy[0]


def test_masks_are_filled_by_a_bert(reference):
    run = reference("fp32", "mlm")
    result = launch("python", "--checkpoint", run, "--prompt", "import <mask>\nself.<mask>", script="generate")
    assert result.stdout.startswith("mask 1: ")
    assert "mask 2: " in result.stdout


def test_ignoring_where_documents_end_is_other_data_and_the_default_is_no_news_to_old_checkpoints():
    config = parse(TrainConfig, ["--data.train", "corpora/demo"], "")
    other = parse(TrainConfig, ["--data.train", "corpora/demo", "--data.intra_document_masking", "false"], "")
    assert data_stamp(other, []) == {**data_stamp(config, []), "intra_document_masking": False}
    assert not reader_options(other).intra_document_masking
