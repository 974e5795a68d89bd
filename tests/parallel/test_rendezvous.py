"""A rendezvous that fails says so in time: the address, the missing ranks, and what to do."""

import datetime
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from ingot.parallel.rendezvous import join_rendezvous
from tests.ranks import free_port

SECONDS = 2


@pytest.fixture
def address(monkeypatch) -> int:
    """A free port of this machine, announced as torchrun's environment announces it."""
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return port


def refusal(rank: int, world_size: int = 2) -> str:
    start = time.monotonic()
    with pytest.raises(ValueError, match=r".") as caught:
        join_rendezvous(rank, world_size, SECONDS)
    assert time.monotonic() - start < SECONDS + 3
    return str(caught.value)


def test_all_ranks_meet_whoever_comes_first(address):
    with ThreadPoolExecutor(3) as pool:
        late = [pool.submit(join_rendezvous, rank, 3, 10) for rank in (2, 1)]
        time.sleep(0.3)
        stores = [pool.submit(join_rendezvous, 0, 3, 10).result(), *(each.result() for each in late)]
    stores[0].set("word", "given")
    assert stores[2].get("word") == b"given"


def test_no_process_listens(address):
    message = refusal(1)
    assert f"rank 1 on {socket.gethostname()} tried for 2 seconds (parallel.rendezvous_seconds)" in message
    assert f"to reach rank 0 at 127.0.0.1:{address}" in message
    assert "no process listens on that port" in message
    assert "--master_port" in message


def test_no_process_listens_where_torchrun_should_hold_the_store(address, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert f"the torchrun of the first machine at 127.0.0.1:{address}" in refusal(0)


def test_a_name_that_does_not_resolve(address, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    assert re.search(rf"nowhere.invalid:{address}: the name .* does not resolve .*Give an IP address", refusal(1))


def test_the_port_is_taken(address):
    with socket.create_server(("", address)):
        message = refusal(0)
    assert f"rank 0 cannot listen at 127.0.0.1:{address}: another process listens there" in message
    assert "--master_port" in message


def test_another_program_listens(address):
    with socket.create_server(("127.0.0.1", address)):
        assert f"something listens at 127.0.0.1:{address}, but it does not answer rank 1" in refusal(1)


def test_missing_ranks_are_named(address):
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(refusal, 3, 6)
        message = refusal(0, 6)
        assert f"at 127.0.0.1:{address} for 6 ranks, and 4 are missing: 1, 2, 4, 5." in message
        other.result()


def test_launchers_that_disagree(address):
    store = dist.TCPStore("127.0.0.1", address, None, True, datetime.timedelta(seconds=5), wait_for_workers=False)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(refusal, 1, 4)
        time.sleep(0.5)
        assert "rank 2 has WORLD_SIZE 8, and others at 127.0.0.1" in refusal(2, 8)
        assert re.search(r"two processes at .* have rank 1: .*--node_rank", refusal(1, 4))
        assert "are missing: 0, 2, 3" in first.result()
    del store


@pytest.mark.parametrize(("name", "value"), [("MASTER_PORT", "many"), ("MASTER_PORT", "70000"), ("MASTER_ADDR", "")])
def test_an_incomplete_environment(address, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert re.search(rf"{name}.* '{value}'.*expected the address of rank 0's machine and a port", refusal(1))
