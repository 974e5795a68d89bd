"""The precision `auto`: all ranks settle on the same one, which is bf16 only where each of them computes in it."""

import os

import pytest
import torch

from ingot.launcher.config.parallel import Parallel
from ingot.launcher.config.pretrain import Run, TrainConfig
from ingot.launcher.planning.footprint import counted_precision
from ingot.launcher.runtime.device import computes_in_bf16
from ingot.launcher.runtime.peer_watchdog import PeerWatchdog
from ingot.launcher.training import setup
from ingot.parallel import mesh as meshes
from tests.launcher.runs import launch, records, write_config
from tests.ranks import run_ranks

CPU = torch.device("cpu")
LOG = "this device has no instructions for bf16"


def settle(precision: str, able: list[bool]) -> str:
    """What this rank is left with, where rank n computes in bf16 or does not, as `able[n]` says."""
    setup.computes_in_bf16 = lambda device: able[int(os.environ["RANK"])]
    config = TrainConfig(run=Run(device="cpu"), parallel=Parallel(precision=precision))
    with PeerWatchdog() as watchdog:
        _, config = setup.start_mesh(config, watchdog, {})
        meshes.stop()
    return config.parallel.precision


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("precision", "able", "expected"),
    [("auto", [True, True], "bf16"), ("auto", [True, False], "fp32"), ("bf16", [False, False], "bf16")],
)
def test_all_ranks_settle_on_what_each_of_them_computes_in(precision, able, expected):
    assert run_ranks(settle, 2, precision, able) == [expected] * 2


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_a_run_says_its_precision_and_what_it_costs(precision, corpus, tmp_path):
    config = write_config(tmp_path, corpus)
    given = ["--parallel.engine", "fsdp", "--parallel.precision", precision, "--run.steps", 2, "--run.save_every", 0]
    launch("python", "--config", config, *given)
    settled = "bf16" if precision == "bf16" or computes_in_bf16(CPU) else "fp32"
    log = (tmp_path / "runs/tiny/log.txt").read_text()
    assert f"torch, {settled} on 1 process" in log
    assert (LOG in log) == (settled == "bf16" and not computes_in_bf16(CPU))
    assert f"precision: {settled}" in (tmp_path / "runs/tiny/config.yaml").read_text()
    assert len(records(tmp_path / "runs/tiny")) == 2


def test_a_plan_counts_bf16():
    assert TrainConfig().parallel.precision == "auto"
    assert counted_precision(TrainConfig()) == "bf16"
    assert counted_precision(TrainConfig(parallel=Parallel(precision="fp32"))) == "fp32"
