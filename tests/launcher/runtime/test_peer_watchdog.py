"""Messages between ranks, and from other programs. What ranks do then: test_failures.py."""

import socket
import threading
import time
from dataclasses import asdict

import pytest

from ingot.launcher.runtime.peer_watchdog import LostRank, PeerWatchdog
from ingot.parallel import mesh as meshes
from tests.ranks import run_ranks

JUNK = [
    b"\xff\xfe\n",
    b"[1, 2]\n",
    b"7\n",
    b'{"bye": true}\n',
    b'{"rank": 1, "token": "guessed"}\n',
    b'{"rank": 1}\n',
    b"",
]


def listen(rank_that_fails: int) -> tuple[LostRank | None, LostRank | None]:
    """What this rank knows after other programs have connected, and after a rank has reported that it fails."""
    mesh = meshes.start("cpu")
    with PeerWatchdog() as watchdog:
        watchdog.connect(mesh.rank, mesh.world_size)
        if mesh.rank == 1:
            address = next(iter(watchdog._ranks)).getpeername()[:2]
            for words in JUNK:
                with socket.create_connection(address) as stranger:
                    stranger.sendall(words)
        time.sleep(0.5)
        meshes.sum_over_ranks([0])
        before = watchdog.lost
        meshes.sum_over_ranks([0])
        if mesh.rank == rank_that_fails:
            watchdog._send(asdict(LostRank(mesh.rank, "so it goes", 3)))
        else:
            watchdog._reported.wait(10)
        after = watchdog.lost
        meshes.sum_over_ranks([0])
    return before, after


@pytest.mark.distributed
@pytest.mark.parametrize("rank", [0, 2])
def test_all_learn_of_a_failure_and_other_programs_are_ignored(rank):
    heard = run_ranks(listen, 3, rank)
    assert [before for before, _ in heard] == [None] * 3
    for other in {0, 1, 2} - {rank}:
        assert heard[other][1] == LostRank(rank, "so it goes", 3)


def test_an_error_waits_for_the_report_of_the_lost_rank(monkeypatch, capsys):
    """Also if the connection is closed already, and only the report of whose it was is missing."""

    def exit_process(code: int) -> None:
        raise SystemExit(code)

    def lose() -> None:
        time.sleep(0.3)
        watchdog._lose(LostRank(1))
        watchdog._reported.set()

    monkeypatch.setattr("ingot.launcher.runtime.peer_watchdog.exit_process", exit_process)
    watchdog = PeerWatchdog()
    watchdog._watching = True
    threading.Thread(target=lose).start()
    with pytest.raises(SystemExit), watchdog:
        raise RuntimeError("Connection closed by peer")
    assert "rank 0 lost its connection to rank 1" in capsys.readouterr().err


def test_the_message_for_a_rank():
    assert LostRank(3).message_for(0).startswith("rank 0 lost its connection to rank 3: that process has died (killed,")
    assert LostRank(None).message_for(0).startswith("rank 0 lost its connection to another rank: ")
    assert "rank 3 has failed (out of luck); see its output above" in LostRank(3, "out of luck", 1).message_for(0)


def test_one_rank_has_no_connection():
    with PeerWatchdog() as watchdog:
        watchdog.connect(0, 1)
        assert watchdog._ranks == {}
