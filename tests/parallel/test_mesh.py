"""The process group of one process, in a program that does other things too."""

import os

import pytest
import torch.distributed as dist

from ingot.parallel import mesh as meshes

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_nothing_is_left_of_a_mesh_that_has_been_stopped(monkeypatch):
    """Other libraries in the process would take the variables for those of a launcher."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):
        meshes.start("cpu")
        assert os.environ["WORLD_SIZE"] == "1"
        meshes.stop()
        assert not dist.is_initialized()
        assert not set(NAMES) & os.environ.keys()


@pytest.mark.parametrize("name", NAMES)
def test_what_was_set_before_stays(name, monkeypatch):
    for each in NAMES:
        monkeypatch.delenv(each, raising=False)
    value = {"MASTER_ADDR": "localhost", "WORLD_SIZE": "1"}.get(name, "0")
    monkeypatch.setenv(name, value)
    meshes.start("cpu")
    meshes.stop()
    assert [each for each in NAMES if each in os.environ] == [name]
