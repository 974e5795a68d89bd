"""When the timeouts of collectives are short. That they then hold: tests/parallel/test_timeouts.py."""

import os
import signal
import subprocess
import time

import psutil
import pytest

from ingot.launcher.config.pretrain import Run
from ingot.launcher.training.callbacks.timeouts import CollectiveTimeouts
from ingot.parallel import mesh as meshes
from ingot.parallel.torch_compat import process_groups
from tests.launcher.runs import command, environment, records, write_config


@pytest.fixture
def mesh():
    yield meshes.start("cpu", 7, init_timeout_seconds=70)
    meshes.stop()


def test_short_in_steps_and_long_around_evaluations_and_saves(mesh):
    def seconds() -> float:
        return process_groups()[0]._get_backend(mesh.device).options._timeout.total_seconds()

    callback, found = CollectiveTimeouts(mesh, Run(steps=12, eval_every=4, save_every=5)), []
    for step in range(1, 13):
        found.append(seconds())  # in this step
        callback.on_step_end(step)
    assert [step for step, each in enumerate(found, 1) if each == 70] == [1, 5, 6, 9, 11]
    assert set(found) == {7, 70}
    assert seconds() == 70  # what comes after the last step


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_hangs_in_a_step_ends_the_run(corpus, tmp_path):
    """It is stopped as a whole, so that nothing of it answers, and its connections stay open."""
    config = write_config(tmp_path, corpus)
    options = ["--run.steps", 100000, "--run.save_every", 0, "--parallel.timeout_seconds", 3]
    arguments = ["--config", config, *options]
    run = subprocess.Popen(
        [*command("torchrun 2"), *map(str, arguments)], env=environment(), stderr=subprocess.PIPE, text=True
    )
    metrics, end = tmp_path / "runs/tiny", time.monotonic() + 60
    while not (metrics / "metrics.jsonl").exists() or len(records(metrics)) < 3:
        assert time.monotonic() < end
        time.sleep(0.1)
    ranks = psutil.Process(run.pid).children()
    hung = next(rank for rank in ranks if rank.environ().get("LOCAL_RANK") == "1").pid
    start = time.monotonic()
    os.kill(hung, signal.SIGSTOP)
    try:
        while "Timed out waiting 3000ms" not in (line := run.stderr.readline()):
            assert line, "ended without a timeout"
        assert time.monotonic() - start < 15
    finally:
        os.kill(hung, signal.SIGKILL)
        run.terminate()
        run.communicate(timeout=60)
