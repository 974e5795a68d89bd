"""Saving during training, and loading parts."""

import pytest
import torch

from ingot.parallel import checkpoint
from ingot.parallel import mesh as meshes
from ingot.parallel.checkpoint import CheckpointError, Saver
from ingot.parallel.checkpoint.files import TensorFile
from tests.full_disk import full_disk
from tests.parallel.toy import build, train


@pytest.fixture(scope="module")
def engine():
    engine = build("torch", meshes.start("cpu"))
    train(engine, 0, 2)
    yield engine
    meshes.stop()


def copies(engine) -> dict[str, torch.Tensor]:
    return {shard.name: shard.tensor.detach().clone() for shard in engine.shards()}


def test_what_is_saved_is_the_state_at_the_call(engine, tmp_path):
    saver, expected = Saver(tmp_path, keep=0), copies(engine)
    saver.begin(engine.shards(), step=1, metadata={})
    for shard in engine.shards():
        shard.tensor.add_(1.0)
    path = saver.finish()
    checkpoint.load(path, engine.shards())
    for shard in engine.shards():
        assert torch.equal(shard.tensor, expected[shard.name]), shard.name


def test_one_save_at_a_time_is_in_progress(engine, tmp_path):
    saver = Saver(tmp_path, keep=0)
    for step in (1, 2, 3):
        saver.begin(engine.shards(), step=step, metadata={})
        assert [path.name for path in checkpoint.committed(tmp_path)][: step - 1] == [
            f"step-{n:08d}" for n in range(step - 1, 0, -1)
        ]
    assert saver.is_saving
    assert saver.finish().name == "step-00000003"
    assert not saver.is_saving


def wait(saver) -> tuple:
    saver._save.thread.join()
    return saver.advance(*saver.status())


def test_a_failed_write_is_reported_at_the_next_step_and_tried_again(engine, tmp_path):
    saver = Saver(tmp_path, keep=0)
    with full_disk() as make_room:
        saver.begin(engine.shards(), step=1, metadata={})
        path, trouble = wait(saver)
        assert path is None
        assert "the checkpoint of step 1 could not be written" in trouble
        assert "trying again" in trouble
        saver._save.thread.join()  # the second attempt has failed too
        make_room()  # before the last one begins
    assert "trying again" in saver.advance(*saver.status())[1]
    assert wait(saver) == (None, "")  # written
    path, trouble = wait(saver)
    assert path.name == "step-00000001"
    assert not trouble
    checkpoint.load(path, engine.shards())


def test_a_disk_that_stays_full_is_an_error_and_leaves_nothing(engine, tmp_path):
    saver = Saver(tmp_path, keep=0)
    with full_disk():
        saver.begin(engine.shards(), step=1, metadata={})
        with pytest.raises(CheckpointError, match=r"cannot write a checkpoint into .*File too large"):
            saver.finish()
    assert not saver.is_saving
    assert list(tmp_path.iterdir()) == []


def test_only_weights_and_a_part_of_them(engine, tmp_path):
    path, expected = checkpoint.save(tmp_path, engine.shards(), step=1, metadata={}, keep=0), copies(engine)
    try:
        for only in ("model/", "model/linear."):
            for shard in engine.shards():
                shard.tensor.fill_(7.0)
            checkpoint.load(path, engine.shards(), prefix=only)
            for shard in engine.shards():
                wanted = expected[shard.name] if shard.name.startswith(only) else torch.full_like(shard.tensor, 7.0)
                assert torch.equal(shard.tensor, wanted), (only, shard.name)
    finally:
        checkpoint.load(path, engine.shards())


@pytest.mark.parametrize("header", [b"", b"\x08\0\0\0\0\0\0\0not json", b'\x0f\0\0\0\0\0\0\0{"a":{"b":"c"}}'])
def test_a_file_that_is_not_safetensors_is_named(tmp_path, header):
    (tmp_path / "x.safetensors").write_bytes(header)
    with pytest.raises(checkpoint.files.FileDamaged, match=r"x\.safetensors"):
        TensorFile(tmp_path / "x.safetensors")
