"""What watches a run: the profiler, snapshots of memory, notes of the compiler; and settings that end with the run."""

import gzip
import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

import ingot
from ingot.launcher import pretrain
from ingot.launcher.config.parallel import Parallel
from ingot.launcher.config.pretrain import Run, TrainConfig
from ingot.launcher.training import build, setup
from ingot.parallel.engines.compilation import compile_blocks
from tests.launcher.runs import records, write_config

FIVE_STEPS = ["--run.steps", "5", "--run.save_every", "0", "--parallel.engine", "fsdp"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def train(folder: Path, corpus: Path, *options: str) -> Path:
    """A run of five steps in this process; returns its folder."""
    assert pretrain.main(["--config", str(write_config(folder, corpus)), *FIVE_STEPS, *options]) == 0
    return folder / "runs/tiny"


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory):
    return train(tmp_path_factory.mktemp("plain"), corpus)


@pytest.fixture(scope="module")
def watched(corpus, tmp_path_factory):
    """A run that is profiled, compiled (by a quick back-end) and deterministic, and asks for what only GPUs have."""
    watch = ["--run.profile_steps", "[2, 3]", "--run.memory_snapshots", "true", "--run.memory_snapshot_steps", "[2]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "compile_blocks", partial(compile_blocks, backend="aot_eager"))
        options = ["--parallel.compile", "true", "--run.deterministic", "true"]
        return train(tmp_path_factory.mktemp("watched"), corpus, *watch, *options)


def test_a_profile_of_the_chosen_steps_has_the_operators_of_the_model(watched):
    [trace] = (watched / "profile").glob("*.json.gz")
    assert trace.name == "rank-00000-steps-2-3.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event.get("name") for event in events]
    assert {"aten::mm", "aten::_scaled_dot_product_flash_attention_for_cpu_backward"} <= set(names)
    assert names.count("Optimizer.step#AdamW.step") == 2
    assert "aten::mm" in trace.with_name("rank-00000-steps-2-3.txt").read_text()
    [event] = [record for record in records(watched, "event") if record["event"] == "wrote a profile"]
    assert (event["step"], event["path"]) == (3, str(trace))


def test_what_watches_a_run_does_not_change_it(plain, watched):
    pairs = zip(records(plain), records(watched), strict=True)
    assert all(one["loss"] == pytest.approx(other["loss"], rel=1e-5) for one, other in pairs)


def test_the_log_says_what_was_compiled_and_what_has_no_effect(plain, watched):
    log = (watched / "log.txt").read_text()
    assert "torch, fp32, compiled on 1 process" in log
    assert ", compiled" not in (plain / "log.txt").read_text()
    assert "run.memory_snapshots has no effect" in log or torch.cuda.is_available()
    compiled = [record for record in records(watched, "event") if record["event"] == "compiled"]
    assert 2 <= compiled[-1]["graphs"] <= 4  # training and evaluation, each with and without documents in rows
    assert not [record for record in records(watched, "event") if "without compilation" in record["event"]]


def test_the_configuration_of_a_run_has_what_auto_was(plain, watched):
    assert yaml.safe_load((plain / "config.yaml").read_text())["parallel"]["compile"] is torch.cuda.is_available()
    assert yaml.safe_load((watched / "config.yaml").read_text())["parallel"]["compile"] is True


def test_a_profile_ends_with_a_run_that_is_shorter(corpus, tmp_path):
    folder = train(tmp_path, corpus, "--run.profile_steps", "[5, 9]")
    assert (folder / "profile/rank-00000-steps-5-5.json.gz").exists()


SETTINGS = ("TORCHINDUCTOR_CACHE_DIR", "CUBLAS_WORKSPACE_CONFIG", "TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE")


def test_settings_of_torch_hold_during_a_run_and_end_with_it(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "7")  # the user's own
    before = [os.environ.get(name) for name in SETTINGS]
    options = {"parallel.engine": "fsdp", "run.deterministic": True, "parallel.compile_cache": tmp_path / "cache"}
    with ingot.Training(write_config(tmp_path, corpus), **options) as training:
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert [os.environ.get(name) for name in SETTINGS] == [
            str(tmp_path / "cache"),
            ":4096:8",
            "7",
            str(tmp_path / "runs/tiny/flight-recorder/rank_"),
        ]
        training.step()
    assert not torch.are_deterministic_algorithms_enabled()
    assert [os.environ.get(name) for name in SETTINGS] == before


@pytest.mark.parametrize(
    ("options", "steps", "reason"),
    [
        ({}, 500, ""),
        ({}, 499, "fewer than 500 steps"),
        ({"zero_stage": 3}, 500, "ZeRO-3"),
        ({"engine": "fsdp", "zero_stage": 3}, 500, ""),
        ({"activation_checkpointing": "memory_budget"}, 5, ""),
    ],
)
def test_when_auto_compiles_on_gpus(options, steps, reason, monkeypatch):
    monkeypatch.setattr(setup, "has_triton", lambda: True)
    config = TrainConfig(run=Run(steps=steps), parallel=Parallel(**options))
    found = setup.why_not_compiled(config, torch.device("cuda"))
    assert reason in found
    assert bool(reason) == bool(found)


@needs_gpu
@pytest.mark.parametrize("engine", ["fsdp", "zero"])
def test_a_deterministic_run_on_a_gpu_resumes_to_the_last_bit(engine, corpus, tmp_path):
    """Packed documents in bf16: flash attention's backward pass and the gradients of embeddings are what differs."""
    common = ["--run.device", "cuda", "--run.deterministic", "true", "--parallel.precision", "bf16"]
    common += ["--parallel.engine", engine, "--run.steps", "8", "--model.hidden_size", "64"]
    whole = train(tmp_path / "whole", corpus, *common)
    train(tmp_path / "parts", corpus, *common, "--run.steps", "4", "--run.save_every", "4")
    parts = train(tmp_path / "parts", corpus, *common)
    assert [r["loss"] for r in records(whole)] == [r["loss"] for r in records(parts)]
    assert [r["grad_norm"] for r in records(whole)] == [r["grad_norm"] for r in records(parts)]


@needs_gpu
def test_snapshots_of_a_gpus_memory(corpus, tmp_path):
    options = ["--run.device", "cuda", "--run.memory_snapshots", "true", "--run.memory_snapshot_steps", "[2]"]
    folder = train(tmp_path, corpus, *options)
    assert (folder / "profile/rank-00000-step-2.pickle").stat().st_size > 1000
