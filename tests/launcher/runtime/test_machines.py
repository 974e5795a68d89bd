"""Two launchers with two ranks each, as on two machines, train the same as four ranks on one machine."""

import subprocess

import pytest

from ingot.launcher import pretrain
from tests.launcher.runs import BIN, ROOT, environment, records, write_config
from tests.ranks import free_port, run_ranks


def start_on_two_machines(launcher: str, folder, arguments: list) -> list[list[str]]:
    """The commands of both machines."""
    port = str(free_port())
    script = [str(ROOT / "launcher/pretrain.py"), *map(str, arguments)]
    if launcher == "torchrun":
        common = [str(BIN / "torchrun"), "--nnodes", "2", "--nproc_per_node", "2"]
        meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "test"]
        return [[*common, *meeting, *script] for _ in range(2)]
    hosts = folder / "hostfile"
    hosts.write_text("first slots=2\nsecond slots=2\n")  # names are never looked up without ssh
    common = [str(BIN / "deepspeed"), "--hostfile", str(hosts), "--no_ssh", "--master_addr", "127.0.0.1"]
    return [[*common, "--master_port", port, "--node_rank", str(node), *script] for node in range(2)]


@pytest.mark.distributed
@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("deepspeed", marks=pytest.mark.slow)])
def test_two_launchers_train_what_one_trains(corpus, tmp_path, launcher):
    config = write_config(tmp_path, corpus)
    layout = ["--config", str(config), "--parallel.precision", "fp32", "--parallel.zero_stage", "2", "--run.steps", "8"]
    assert run_ranks(pretrain.main, 4, [*layout, "--run.name", "one"]) == [0] * 4
    commands = start_on_two_machines(launcher, tmp_path, [*layout, "--run.name", "two"])
    processes = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    one, two = records(tmp_path / "runs/one"), records(tmp_path / "runs/two")
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in two] == pytest.approx([r[key] for r in one], rel=1e-6), key
    assert [r["batch_fingerprint"] for r in two] == [r["batch_fingerprint"] for r in one]
