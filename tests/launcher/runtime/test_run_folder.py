"""What a run finds in its folder, and who else is there."""

import signal
import subprocess
import time

import pytest

from tests.launcher.runs import command, environment, launch, records, write_config


def test_a_second_run_in_a_folder_is_refused_and_the_first_goes_on(corpus, tmp_path):
    config = write_config(tmp_path, corpus)
    line = [*command("python"), "--config", str(config), "--run.steps", "1000000", "--parallel.engine", "fsdp"]
    first = subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        metrics = tmp_path / "runs/tiny/metrics.jsonl"
        end = time.monotonic() + 120
        while not (metrics.exists() and records(tmp_path / "runs/tiny")):
            assert first.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        second = launch("python", "--config", config, "--run.steps", 3, "--run.resume", "auto", code=2)
        assert f"process {first.pid} on " in second.stderr
        assert "choose another run.name" in second.stderr
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)
        assert first.returncode == 75
    finally:
        first.kill()
    third = records(tmp_path / "runs/tiny")[-1]["step"] + 1
    launch("python", "--config", config, "--run.steps", third, "--parallel.engine", "fsdp")  # the folder is free again


def test_weights_of_another_run_with_all_else_anew(corpus, tmp_path):
    config = write_config(tmp_path, corpus)
    common = ["--config", config, "--parallel.engine", "fsdp", "--parallel.precision", "fp32"]
    launch("python", *common)
    other = ["--run.name", "other", "--run.steps", 2, "--run.init_from", tmp_path / "runs/tiny"]
    launch("python", *common, *other, "--run.seed", 8)
    before, after = records(tmp_path / "runs/tiny"), records(tmp_path / "runs/other")
    assert after[0]["samples"] == before[0]["samples"]
    assert after[0]["learning_rate"] == before[0]["learning_rate"]
    assert after[0]["loss"] == pytest.approx(before[-1]["loss"], abs=0.3)
    assert after[0]["loss"] < before[0]["loss"] - 0.5
    launch("python", *common, *other, "--run.seed", 8, "--run.steps", 3)  # its own checkpoint counts now
    assert [r["step"] for r in records(tmp_path / "runs/other")] == [1, 2, 3]


def test_weights_of_another_model_are_refused(corpus, tmp_path):
    config = write_config(tmp_path, corpus)
    launch("python", "--config", config, "--run.steps", 1)
    wide = ["--run.name", "wide", "--model.hidden_size", 64, "--run.init_from", tmp_path / "runs/tiny"]
    result = launch("python", "--config", config, *wide, code=2)
    assert "was made by another model" in result.stderr
