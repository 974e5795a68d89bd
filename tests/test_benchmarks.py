"""The benchmark of a GPU runs all its branches on a CPU, so that the minutes on a GPU are not spent on its mistakes."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gpu():
    sys.path.insert(0, str(ROOT / "benchmarks"))  # where a benchmark finds its neighbours
    try:
        return importlib.import_module("gpu")
    finally:
        sys.path.pop(0)


def test_all_branches_of_the_benchmark_of_a_gpu_run(tmp_path, gpu):
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--output", str(tmp_path / "gpu.json")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert [line for line in kept["results"] if "failed" in line] == []
    assert {line["section"] for line in kept["results"]} == set(gpu.SECTIONS)
    measured = {line["name"] for line in kept["results"] if "skipped" not in line}
    assert {
        "gpt2, compiled",
        "llama, transformers, rows",
        "bert, not compiled",
        "gpt2, ZeRO-3, not compiled",
    } <= measured
    assert kept["versions"]["torch"]


def test_a_section_that_fails_or_hangs_costs_only_itself(tmp_path, gpu):
    results = tmp_path / "results.jsonl"
    results.touch()
    gpu.run_apart("loss", 1.0, results)  # too short to import torch
    bench = gpu.Bench("loss", 60, True, results)

    def broken() -> None:
        raise RuntimeError("out of memory")

    bench.cases({"broken": broken, "whole": lambda: bench.say("whole", ms=1.0)})
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line.get("failed") for line in lines] == ["its 1 s were over", "RuntimeError: out of memory", None]


def test_what_does_not_fit_into_the_time_is_said(tmp_path, gpu):
    bench = gpu.Bench("loss", -1, False, tmp_path / "results.jsonl")
    bench.device = gpu.torch.device("cpu")
    bench.cases({"late": lambda: bench.say("late", ms=1.0)})
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    assert "left of the section's time" in json.loads(line)["skipped"]
