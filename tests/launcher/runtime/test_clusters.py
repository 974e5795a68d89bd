"""The scripts of configs/clusters and the commands of docs/several-machines.md name what exists, and do what they say.

A cluster's own commands (srun, scontrol) are not there, and stand-ins write down how they were called.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ingot.launcher.config.parser import parse
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.runtime.exit_codes import REQUEUE
from tests.launcher.runs import ROOT, environment

CLUSTERS = ROOT / "configs/clusters"
SCRIPTS = sorted(CLUSTERS.glob("*.sh"))
DOCUMENTS = [ROOT / "docs/several-machines.md", *CLUSTERS.iterdir()]
TRAINING = ["--config", "configs/gpt2-124m.yaml", "--batch.micro_size", "10"]
SLURM = {
    "SLURM_SUBMIT_DIR": str(ROOT),
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "node-[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
}


@pytest.fixture
def call(tmp_path):
    """Runs a script where each of the commands it may call only notes its words and exits with `code`."""
    noted = tmp_path / "noted"

    def run(script: Path, arguments: list[str], variables: dict[str, str], code: int = 0) -> tuple[int, list[list]]:
        for name in ("deepspeed", "torchrun", "python", "srun", "scontrol"):
            stand_in = tmp_path / name
            show = '[ "$1" != show ] || { echo node-1; echo node-2; exit 0; }\n' if name == "scontrol" else ""
            stand_in.write_text(f'#!/bin/sh\n{show}printf "%s\\n" {name} "$@" "" >> {noted}\nexit {code}\n')
            stand_in.chmod(0o755)
        noted.write_text("")
        found = environment() | variables
        found["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
        result = subprocess.run(["bash", str(script), *arguments], env=found, capture_output=True, text=True)
        calls = [block.split("\n") for block in noted.read_text().split("\n\n") if block]
        return result.returncode, calls

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound_bash(script):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert script.read_text().startswith("#!/usr/bin/env bash\n#")


def check(words: list[str]) -> None:
    """A whole command: its launcher's options, its script, and the script's options."""
    assert "launcher/pretrain.py" in words, words
    split = words.index("launcher/pretrain.py")
    before, after = words[:split], words[split + 1 :]
    config = parse(TrainConfig, after, "")
    config.check(16)
    if "launcher/torchrun.py" in before or before[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        start = before.index("launcher/torchrun.py") if "launcher/torchrun.py" in before else 0
        options = get_args_parser().parse_args([*before[start + 1 :], "launcher/pretrain.py"])
        assert options.training_script == "launcher/pretrain.py"
    elif before[0] == "deepspeed":
        from deepspeed.launcher.runner import fetch_hostfile, parse_args

        options = parse_args([*before[1:], "launcher/pretrain.py"])
        assert options.user_script == "launcher/pretrain.py"
        if options.hostfile.startswith("configs/"):
            assert fetch_hostfile(str(ROOT / options.hostfile)) == {"node-1": 8, "node-2": 8}
    else:
        assert before == ["python"], before


@pytest.mark.parametrize(
    ("name", "variables", "expected"),
    [
        ("deepspeed.sh", {}, "--master_addr node-1 --master_port 29500"),
        ("deepspeed-node.sh", {"MASTER_ADDR": "10.0.0.1", "NODE_RANK": "1"}, "--no_ssh --node_rank 1"),
        ("torchrun-node.sh", {"MASTER_ADDR": "10.0.0.1", "NODES": "2"}, "--rdzv_endpoint 10.0.0.1:29500"),
        ("torchrun-node.sh", {"MASTER_ADDR": "a", "NODES": "2", "HOLDS_MEETING": "1"}, "--rdzv_conf is_host=1"),
        ("slurm.sh", SLURM, "--rdzv_id 123456-0 --rdzv_endpoint node-1:23456"),
    ],
)
def test_a_script_starts_a_command_that_is_whole(call, name, variables, expected):
    code, calls = call(CLUSTERS / name, TRAINING, variables)
    assert code == 0
    assert len(calls) == 1
    check(calls[0])
    assert expected in " ".join(calls[0])
    assert calls[0][-4:] == TRAINING


@pytest.mark.parametrize("name", ["deepspeed-node.sh", "torchrun-node.sh", "slurm.sh"])
def test_a_script_says_which_variable_it_misses(call, name):
    code, calls = call(CLUSTERS / name, TRAINING, {})
    assert code != 0
    assert calls == []


@pytest.mark.parametrize(("code", "restarts", "again"), [(75, 0, True), (75, 100, False), (2, 0, False), (0, 0, False)])
def test_slurm_queues_a_run_again_that_is_worth_it(call, code, restarts, again):
    ended, calls = call(CLUSTERS / "slurm.sh", TRAINING, SLURM | {"SLURM_RESTART_COUNT": str(restarts)}, code)
    assert ended == code
    assert (["scontrol", "requeue", "123456"] in calls) == again


def test_the_manifest_starts_a_command_that_is_whole():
    manifest = yaml.safe_load((CLUSTERS / "pytorchjob.yaml").read_text())
    assert (manifest["kind"], manifest["apiVersion"]) == ("PyTorchJob", "kubeflow.org/v1")
    replicas = manifest["spec"]["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"}
    pods = sum(replica["replicas"] for replica in replicas.values())
    for replica in replicas.values():
        pod = replica["template"]["spec"]
        container = pod["containers"][0]
        assert container["name"] == "pytorch"  # the operator looks for that name
        words = [*container["command"], *container["args"]]
        assert words[:2] == ["bash", "configs/clusters/pod.sh"]
        for name, value in {"RANK": "1", "MASTER_ADDR": "ingot-master-0", "MASTER_PORT": "23456"}.items():
            words = [word.replace(f"$({name})", value) for word in words]
        assert not [word for word in words if "$" in word]
        check(words[2:])
        assert f"--nnodes={pods}" in words
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (2, 2), (REQUEUE, 138)])
def test_a_pod_ends_with_a_code_that_says_whether_to_start_it_again(code, expected):
    assert subprocess.run(["bash", CLUSTERS / "pod.sh", "bash", "-c", f"exit {code}"]).returncode == expected


def test_a_pod_that_is_told_to_stop_passes_it_on_and_waits():
    code = "import signal, sys, time\n"
    code += "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(75)))\nprint('ready', flush=True)\n"
    code += "time.sleep(60)"
    pod = subprocess.Popen(["bash", CLUSTERS / "pod.sh", sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert pod.stdout.readline() == "ready\n"
        pod.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert pod.poll() is None
        assert pod.wait(timeout=20) == 138
    finally:
        pod.kill()


def commands_in(text: str) -> list[list[str]]:
    """Commands in comments and in indented blocks; a line that ends with a backslash goes on."""
    lines = re.sub(r"\\\n[# ]*", " ", text).splitlines()
    starts = r"^(?:#  |    )\s*((?:[A-Z_]+=\S+ )*(?:deepspeed|torchrun|python|bash|sbatch) .*)"
    return [shlex.split(match[1], comments=True) for line in lines if (match := re.match(starts, line))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_people_are_told_exist(call, path):
    text = path.read_text()
    for name in re.findall(r"(?:launcher|configs|docs|tests)/[\w/-]+(?:\.(?:py|sh|yaml|md)|\b(?=[ `)]))", text):
        assert (ROOT / name).exists(), name
    commands = commands_in(text)
    assert len(commands) >= {"several-machines.md": 5, "hostfile": 0, "pytorchjob.yaml": 0}.get(path.name, 1)
    for words in commands:
        variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        words = words[len(variables) :]
        if words[0] in ("bash", "sbatch") and words[-1] != "...":
            _, calls = call(ROOT / words[1], words[2:], SLURM | variables)
            words = calls[0]
        if "launcher/pretrain.py" in words:
            check(words)


def test_the_document_names_each_script_and_real_options():
    text = (ROOT / "docs/several-machines.md").read_text()
    for path in CLUSTERS.iterdir():
        assert f"configs/clusters/{path.name}" in text, path.name
    defaults = parse(TrainConfig, [], "").to_dict()
    for section, name in re.findall(r"`(?:--)?(run|parallel|batch|data)\.(\w+)", text):
        assert name in defaults[section], f"{section}.{name}"
