"""What a run finds in its folder, and what happens when another run uses it."""

import signal
import subprocess
import time

import pytest

from ingot.launcher import pretrain
from ingot.launcher.runtime.exit_codes import BadInput
from ingot.launcher.runtime.run_lock import lock
from tests.launcher.runs import command, environment, records, write_config

FSDP = ["--parallel.engine", "fsdp"]


def train(config, *arguments: object) -> int:
    """A run in this process."""
    return pretrain.main(["--config", str(config), *FSDP, *map(str, arguments)])


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("run-folder"), corpus)


@pytest.fixture(scope="module")
def trained(config):
    """The folder of a run of 20 steps."""
    assert train(config) == 0
    return config.parent / "runs/tiny"


def test_a_second_run_in_a_folder_is_refused_and_the_first_continues(config):
    name = ["--run.name", "locked"]
    folder = config.parent / "runs/locked"
    line = [*command("python"), "--config", str(config), *FSDP, *name, "--run.steps", "1000000"]
    first = subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        end = time.monotonic() + 120
        while not ((folder / "metrics.jsonl").exists() and records(folder)):
            assert first.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        with pytest.raises(BadInput, match=rf"process {first.pid} on .*choose another run.name"):
            train(config, *name, "--run.steps", 3, "--run.resume", "auto")
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)
        assert first.returncode == 75
    finally:
        first.kill()
    lock(folder).close()  # the folder is free again


def test_weights_of_another_run_start_a_new_run(config, trained):
    other = ["--run.name", "other", "--run.init_from", trained, "--run.seed", 8]
    assert train(config, *other, "--run.steps", 2) == 0
    before, after = records(trained), records(trained.parent / "other")
    assert after[0]["samples"] == before[0]["samples"]
    assert after[0]["learning_rate"] == before[0]["learning_rate"]
    assert after[0]["loss"] == pytest.approx(before[-1]["loss"], abs=0.3)
    assert after[0]["loss"] < before[0]["loss"] - 0.5
    assert train(config, *other, "--run.steps", 3) == 0  # its own checkpoint counts now
    assert [r["step"] for r in records(trained.parent / "other")] == [1, 2, 3]


def test_weights_of_another_model_are_refused(config, trained):
    with pytest.raises(BadInput, match="was made by another model"):
        train(config, "--run.name", "wide", "--model.hidden_size", 64, "--run.init_from", trained)
