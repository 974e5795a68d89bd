"""Two machines, as far as one can be two: network namespaces of their own, joined by a cable that can be cut.

Needs Linux, root with CAP_NET_ADMIN, and `ip`; skips itself elsewhere.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingot.launcher.runtime.exit_codes import BAD_INPUT, REQUEUE
from tests.launcher.runs import BIN, ROOT, environment, launch, records, write_config

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

PORT = "29517"  # free in a namespace that is new
TOY = ROOT / "tests/launcher/toy_run.py"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines() -> Iterator[list[tuple[str, str]]]:
    """(name of the namespace, its address) of two, with a cable `wire` between them."""
    if shutil.which("ip") is None:
        pytest.skip("there is no command ip (package iproute2)")
    names = [f"ingot-{os.getpid()}-{number}" for number in range(2)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "wire", "netns", names[0], "type", "veth", "peer", "name", "wire", "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        for number, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{number + 1}/24", "dev", "wire")
            for device in ("lo", "wire"):
                ip("-n", name, "link", "set", device, "up")
        yield [(name, f"10.77.0.{number + 1}") for number, name in enumerate(names)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@contextmanager
def started(machines: list, commands: list[list], logs: Path, variables: list[dict]) -> Iterator[list]:
    """One command on each machine."""
    processes = []
    try:
        for (name, _), command, more in zip(machines, commands, variables, strict=True):
            with (logs / name).open("w") as log:
                processes.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", name, *map(str, command)],
                        env=environment() | {key: str(value) for key, value in more.items()},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()


def output(machines: list, logs: Path) -> str:
    return "\n".join((logs / name).read_text() for name, _ in machines)


def toy_variables(machines: list, interface: str) -> list[dict]:
    world = {"WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": machines[0][1], "MASTER_PORT": PORT}
    return [world | {"RANK": rank, "GLOO_SOCKET_IFNAME": interface} for rank in range(2)]


def test_two_machines_train_what_one_trains(corpus, tmp_path, machines):
    config = write_config(tmp_path, corpus)
    layout = ["--config", config, "--parallel.precision", "fp32", "--parallel.zero_stage", 2, "--run.steps", 8]
    launch("torchrun 4", *layout, "--run.name", "one")
    common = [BIN / "torchrun", "--nnodes", 2, "--nproc_per_node", 2, "--rdzv_backend", "c10d", "--rdzv_id", "test"]
    common += ["--rdzv_endpoint", f"{machines[0][1]}:{PORT}"]
    script = [ROOT / "launcher/pretrain.py", *layout, "--run.name", "two"]
    commands = [  # by its name, which both share, torchrun cannot tell which of the machines holds the rendezvous
        [*common, "--local_addr", address, "--rdzv_conf", f"is_host={int(number == 0)}", *script]
        for number, (_, address) in enumerate(machines)
    ]
    with started(machines, commands, tmp_path, [{"GLOO_SOCKET_IFNAME": "wire"}] * 2) as processes:
        codes = [process.wait(timeout=240) for process in processes]
    assert codes == [0, 0], output(machines, tmp_path)
    one, two = records(tmp_path / "runs/one"), records(tmp_path / "runs/two")
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in two] == pytest.approx([r[key] for r in one], rel=1e-6), key
    assert [r["batch_fingerprint"] for r in two] == [r["batch_fingerprint"] for r in one]


def test_the_wrong_interface_is_found_out_at_the_start(tmp_path, machines):
    """Over `lo` each machine would talk to itself; the ranks have met by then, so it is not the rendezvous."""
    commands = [[sys.executable, TOY, tmp_path]] * 2
    with started(machines, commands, tmp_path, toy_variables(machines, "lo")) as processes:
        assert {process.wait(timeout=60) for process in processes} == {BAD_INPUT}, output(machines, tmp_path)
    assert re.search("met all other ranks at .* could not connect .*GLOO_SOCKET_IFNAME", output(machines, tmp_path))


def test_a_cable_that_is_cut_is_noticed_within_a_minute_or_so(tmp_path, machines):
    """Nobody closes a connection then, and the collective alone would wait for its timeout of 600 seconds."""
    commands = [[sys.executable, TOY, tmp_path]] * 2
    with started(machines, commands, tmp_path, toy_variables(machines, "wire")) as processes:
        end = time.monotonic() + 60
        while not (tmp_path / "step-1").exists():
            assert time.monotonic() < end, output(machines, tmp_path)
            time.sleep(0.1)
        ip("-n", machines[0][0], "link", "set", "wire", "down")
        start = time.monotonic()
        assert [process.wait(timeout=120) for process in processes] == [REQUEUE] * 2, output(machines, tmp_path)
        print(f"{time.monotonic() - start:.1f} seconds")
    for rank in range(2):
        assert f"rank {rank} lost its connection to rank {1 - rank}" in output(machines, tmp_path)
