"""A build lock that a killed process left behind does not hold up later ones; a live build is waited for."""

import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path

from ingot.parallel.engines.deepspeed_extensions import build_lock, own_ninja


def test_a_lock_that_was_left_behind_is_removed_with_a_word(tmp_path, capsys):
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / "lock").touch()
    with build_lock(folder, timeout=0.3):
        assert not (folder / "lock").exists()
    assert str(folder / "lock") in capsys.readouterr().err


def test_a_build_by_another_program_is_waited_for(tmp_path, capsys):
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / "lock").touch()
    threading.Timer(0.5, (folder / "lock").unlink).start()
    start = time.monotonic()
    with build_lock(folder, timeout=60):
        assert 0.4 < time.monotonic() - start < 30
    assert capsys.readouterr().err == ""


def hold(folder, seconds):
    with build_lock(folder):
        (folder / "lock").touch()  # as torch does while it builds
        (folder / "held").touch()
        time.sleep(seconds)


def test_the_guard_ends_with_a_killed_holder(tmp_path):
    folder = tmp_path / "extension"
    folder.mkdir()
    holder = multiprocessing.get_context("spawn").Process(target=hold, args=(folder, 600))
    holder.start()
    while not (folder / "held").exists():
        time.sleep(0.05)
    entered = threading.Event()

    def enter():
        with build_lock(folder):
            entered.set()

    waiting = threading.Thread(target=enter, daemon=True)
    waiting.start()
    assert not entered.wait(0.5)
    holder.kill()
    assert entered.wait(30)  # the lock that it has left is not waited for: TIMEOUT_SECONDS is 120
    assert not (folder / "lock").exists()


def test_the_ninja_of_the_environment_is_found_first(monkeypatch):
    """Two versions of ninja, found by turns, would build the extension again at each start."""
    monkeypatch.setenv("PATH", "/usr/bin")
    with own_ninja():
        assert os.environ["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert os.environ["PATH"] == "/usr/bin"
