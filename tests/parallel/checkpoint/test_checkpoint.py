"""Checkpoints: any layout loads what any other has saved, and damage is detected."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from ingot.parallel import checkpoint
from ingot.parallel import mesh as meshes
from ingot.parallel.checkpoint import CheckpointError, CheckpointMismatch, owners
from ingot.parallel.checkpoint.format import stored_shards
from ingot.parallel.checkpoint.single_process import find_problems
from ingot.parallel.tensor_shards import Rectangle
from tests.full_disk import full_disk
from tests.parallel.toy import ENGINES, build, train
from tests.ranks import run_ranks

METADATA = {"cursor": 32, "tokens": 512}


def save_with_all(folder: Path) -> dict:
    """Each engine trains 4 steps, saves, and trains 3 more."""
    mesh = meshes.start("cpu")
    after = {}
    for kind in ENGINES:
        engine = build(kind, mesh)
        train(engine, 0, 4)
        checkpoint.save(folder / kind, engine.shards(), step=4, metadata=METADATA, keep=0)
        after[kind] = train(engine, 4, 7)
    meshes.stop()
    return after


def load_with_all(folder: Path, sources: list[str]) -> dict:
    """Each engine loads each of the sources and trains 3 steps."""
    mesh = meshes.start("cpu")
    after = {}
    for kind in ENGINES:
        for source in sources:
            engine = build(kind, mesh)
            for shard in engine.shards():
                shard.tensor.fill_(torch.nan)  # shows what is not read
            manifest = checkpoint.load(folder / source / "step-00000004", engine.shards())
            engine.sync_from_shards(manifest["step"])
            after[kind, source] = train(engine, 4, 7)
    meshes.stop()
    return after


@pytest.mark.slow
@pytest.mark.distributed
def test_any_engine_loads_what_any_other_saved_on_another_number_of_ranks(tmp_path):
    straight = run_ranks(save_with_all, 2, tmp_path)[0]
    for num_ranks, sources in ((1, ["torch", "zero-1", "zero-3"]), (2, ["zero-2", "zero-3"])):
        for (kind, source), found in run_ranks(load_with_all, num_ranks, tmp_path, sources)[0].items():
            for mine, expected in zip(found, straight[source], strict=True):
                assert mine == pytest.approx(expected, rel=1e-5), f"{source} on 2 ranks into {kind} on {num_ranks}"
    digests = [
        {
            name: entry["digest"]
            for name, entry in json.loads((tmp_path / kind / "step-00000004/manifest.json").read_text())[
                "tensors"
            ].items()
        }
        for kind in ("torch", "zero-0")
    ]
    assert digests[0] == digests[1]


@pytest.fixture(scope="module")
def mesh():
    yield meshes.start("cpu")
    meshes.stop()


@pytest.fixture(scope="module")
def trained(mesh):
    engine = build("torch", mesh)
    train(engine, 0, 2)
    return engine


@pytest.fixture
def saved(trained, tmp_path):
    return checkpoint.save(tmp_path, trained.shards(), step=2, metadata=METADATA, keep=0)


def test_the_code_in_the_documentation_reads_a_tensor(trained, saved):
    page = (Path(__file__).resolve().parents[3] / "docs/checkpoint-format.md").read_text()
    lines, _, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) <= 10
    names = {"path": str(saved), "name": "optimizer/exp_avg/linear.weight"}
    exec(lines, names)
    assert torch.equal(names["tensor"], trained.optimizer.state[trained.module.linear.weight]["exp_avg"])


def save_as_grids(folder: Path) -> list[str]:
    """FSDP2 on 2 ranks saves each tensor as a grid if it can, and loads it again. Returns the tensors with grids."""
    owners.GRID_FROM = 2
    mesh = meshes.start("cpu")
    engine = build("fsdp", mesh)
    train(engine, 0, 2)
    path = checkpoint.save(folder, engine.shards(), step=2, metadata=METADATA, keep=0)
    before = [shard.tensor.clone() for shard in engine.shards()]
    for shard in engine.shards():
        shard.tensor.fill_(torch.nan)
    checkpoint.load(path, engine.shards())
    assert all(torch.equal(a, b.tensor) for a, b in zip(before, engine.shards(), strict=True))
    meshes.stop()
    return [name for name, entry in checkpoint.read_manifest(path)["tensors"].items() if "grid" in entry]


@pytest.mark.distributed
def test_any_layout_and_the_code_in_the_documentation_read_grids(tmp_path):
    grids = run_ranks(save_as_grids, 2, tmp_path)[0]
    assert "model/linear.weight" in grids
    path = tmp_path / "step-00000002"
    manifest = checkpoint.read_manifest(path)
    assert find_problems(path, manifest) == []  # each element in one file, and its digest
    page = (Path(__file__).resolve().parents[3] / "docs/checkpoint-format.md").read_text()
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    for name in grids:
        entry = manifest["tensors"][name]
        listed = list(names["rectangles"](name, entry["grid"]))
        found = [(each.file, each.key, each.rectangle) for each in stored_shards(name, entry)]
        expected = [(r["file"], r["key"], Rectangle(tuple(r["offset"]), tuple(r["shape"]))) for r in listed]
        assert found == expected


def test_the_manifest_says_what_it_was_given(saved):
    manifest = checkpoint.read_manifest(saved)
    assert (manifest["step"], manifest["cursor"], manifest["tokens"]) == (2, 32, 512)
    assert set(manifest["files"]) == {"rank-00000.safetensors"}
    assert (saved.parent / "LATEST").read_text() == "step-00000002\n"


def flip_a_byte(saved):
    file = saved / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def truncate(saved):
    file = saved / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def edit_manifest(saved, edit):
    file = saved / "manifest.json"
    manifest = json.loads(file.read_text())
    edit(manifest)
    file.write_text(json.dumps(manifest))


def other_version(manifest):
    manifest["version"] = 99


def rectangle_elsewhere(manifest):
    manifest["tensors"]["model/linear.weight"]["rectangles"][0]["offset"] = [1, 0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "damaged: 1 tensors have another digest"),
        (truncate, "has .* bytes instead of"),
        (lambda saved: (saved / "rank-00000.safetensors").unlink(), "is missing"),
        (lambda saved: (saved / "manifest.json").unlink(), "no manifest.json"),
        (lambda saved: (saved / "manifest.json").write_text("{"), "cannot be read"),
        (lambda saved: edit_manifest(saved, other_version), "another format"),
        (lambda saved: edit_manifest(saved, rectangle_elsewhere), "its checksum is another one"),
    ],
)
def test_damage_is_detected_and_named(trained, saved, damage, message):
    damage(saved)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved, trained.shards())


def test_another_model_is_distinguished_from_damage(mesh, saved):
    with pytest.raises(CheckpointMismatch, match=r"model/embedding.weight is \[97, 33\] there and \[97, 32\] here"):
        checkpoint.load(saved, build("torch", mesh, width=32).shards())


def test_old_ones_are_removed_and_unfinished_ones_do_not_count(trained, tmp_path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, trained.shards(), step=step, metadata=METADATA, keep=2)
    (tmp_path / ".step-00000009.partial").mkdir()
    assert [path.name for path in checkpoint.committed(tmp_path)] == ["step-00000005", "step-00000004"]
    assert checkpoint.resolve(tmp_path).name == "step-00000005"


def test_the_newest_intact_one_is_resolved_and_only_damaged_ones_are_an_error(trained, tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path / "checkpoints", trained.shards(), step=step, metadata=METADATA, keep=0)
    truncate(tmp_path / "checkpoints/step-00000002")
    assert checkpoint.resolve(tmp_path).name == "step-00000001"
    truncate(tmp_path / "checkpoints/step-00000001")
    with pytest.raises(CheckpointError, match="instead of"):
        checkpoint.resolve(tmp_path)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.resolve(tmp_path / "elsewhere")


def test_a_full_disk_leaves_only_the_older_checkpoint(trained, saved):
    with full_disk(), pytest.raises(CheckpointError, match="cannot write a checkpoint into"):
        checkpoint.save(saved.parent, trained.shards(), step=3, metadata=METADATA, keep=1)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["LATEST", "step-00000002"]
    checkpoint.load(saved, trained.shards())


def test_a_folder_is_never_written_into_twice(trained, saved):
    flip_a_byte(saved)
    again = checkpoint.save(saved.parent, trained.shards(), step=2, metadata=METADATA, keep=0)
    assert again == saved
    checkpoint.load(saved, trained.shards())
    assert (saved.parent / "step-00000002.damaged-1" / "manifest.json").exists()
    shutil.rmtree(saved.parent / "step-00000002.damaged-1")
