"""What is said on the lines between ranks, by ranks and by strangers. What ranks do then: test_failures.py."""

import socket
import threading
import time
from dataclasses import asdict

import pytest

from ingot.launcher.runtime.peer_watchdog import PeerWatchdog, Loss
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


def listen(rank_that_fails: int) -> tuple[Loss | None, Loss | None]:
    """What this rank has heard after strangers have called, and after a rank has said that it fails."""
    mesh = meshes.start("cpu")
    with PeerWatchdog() as line:
        line.tie(mesh.rank, mesh.world_size)
        if mesh.rank == 1:
            address = next(iter(line._lines)).getpeername()[:2]
            for words in JUNK:
                with socket.create_connection(address) as stranger:
                    stranger.sendall(words)
        time.sleep(0.5)
        meshes.sum_over_ranks([0])
        before = line.loss
        meshes.sum_over_ranks([0])
        if mesh.rank == rank_that_fails:
            line._tell(asdict(Loss(mesh.rank, "so it goes", 3)))
        else:
            line._heard.wait(10)
        after = line.loss
        meshes.sum_over_ranks([0])
    return before, after


@pytest.mark.distributed
@pytest.mark.parametrize("rank", [0, 2])
def test_all_hear_of_a_failure_and_nobody_heeds_strangers(rank):
    heard = run_ranks(listen, 3, rank)
    assert [before for before, _ in heard] == [None] * 3
    for other in {0, 1, 2} - {rank}:
        assert heard[other][1] == Loss(rank, "so it goes", 3)


def test_an_error_waits_for_the_word_of_who_was_lost(monkeypatch, capsys):
    """Even where the line is gone already, and only the word of whose it was is still to come."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    def lose() -> None:
        time.sleep(0.3)
        line._lose(Loss(1))
        line._heard.set()

    monkeypatch.setattr("ingot.launcher.runtime.peer_watchdog.exit_process", leave)
    line = PeerWatchdog()
    line._watching = True
    threading.Thread(target=lose).start()
    with pytest.raises(SystemExit), line:
        raise RuntimeError("Connection closed by peer")
    assert "rank 0 lost its connection to rank 1" in capsys.readouterr().err


def test_what_a_rank_is_told():
    assert Loss(3).told_to(0).startswith("rank 0 lost its connection to rank 3: that process has died (killed,")
    assert Loss(None).told_to(0).startswith("rank 0 lost its connection to another rank: ")
    assert "rank 3 has failed (out of luck); see its output above" in Loss(3, "out of luck", 1).told_to(0)


def test_one_rank_holds_no_line():
    with PeerWatchdog() as line:
        line.tie(0, 1)
        assert line._lines == {}
