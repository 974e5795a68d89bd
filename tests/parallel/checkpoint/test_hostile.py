"""Checkpoints that are damaged byte by byte, or made up: each is refused in time and by name, or reads the same."""

import copy
import json
import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from ingot.parallel import checkpoint
from ingot.parallel import mesh as meshes
from ingot.parallel.checkpoint import CheckpointError
from ingot.parallel.checkpoint.manifest import write_manifest
from ingot.parallel.checkpoint.single_process import find_problems
from tests.parallel.toy import build, train

METADATA = {
    "cursor": 32,
    "tokens": 512,
    "substituted": 0,
    "quarantine": [["ab", 3]],
    "lineage": [{"branch": "0a1b2c3d", "from_step": 0}],
    "data": {"seed": 1},
    "layout": {"engine": "torch"},
    "config": {"model": {}},
    "model": {},
    "task": None,
    "labels": ["a", "b"],
    "scores": {"loss": 1.0},
    "frozen": {"model/x": "0123456789abcdef"},
    "tokenizer_sha256": "0" * 64,
}
ENTRY, FILE = "model/linear.weight", "rank-00000.safetensors"


@pytest.fixture(scope="module")
def trained():
    engine = build("torch", meshes.start("cpu"))
    train(engine, 0, 1)
    yield engine
    meshes.stop()


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """The folder of a run with two checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    for step in (1, 2):
        checkpoint.save(folder / "checkpoints", trained.shards(), step=step, metadata=METADATA, keep=0)
    return folder


@pytest.fixture(scope="module")
def expected(trained):
    return {shard.name: shard.tensor.clone() for shard in trained.shards()}


@contextmanager
def within_seconds():
    """10 seconds of computing, or a minute of waiting: other processes may need the cores too."""

    def stop(number, frame):
        raise AssertionError("it takes too long")

    numbers = {signal.SIGPROF: (signal.ITIMER_PROF, 10), signal.SIGALRM: (signal.ITIMER_REAL, 60)}
    before = {number: signal.signal(number, stop) for number in numbers}
    for timer, seconds in numbers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in numbers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def crafted_values() -> list[tuple[str, object]]:
    """Wrong values of manifest keys: a path of keys, joined by `|`, and the value. The class `Gone` deletes the key."""
    wrong: dict[str, list] = {
        "format": ["x", None, Gone],
        "version": [1, 5, "4", None, [4], Gone],
        "step": [-1, 3, 10**18, 2.0, "2", None, True, [2], Gone],
        "cursor": [-1, 1.5, "32", None, 2**63, [], {}],
        "tokens": [-1, None, "1"],
        "substituted": [-1, None],
        "quarantine": [None, {}, [1], [["ab"]], [["ab", "3"]], [[1, 2]], "ab"],
        "lineage": [
            None,
            {},
            [1],
            [{"branch": 1, "from_step": 0}],
            [{"branch": "a"}],
            [{"branch": "a", "from_step": -1}],
        ],
        "data": [None, [], 1],
        "layout": [None, "x"],
        "config": [None, [], "x"],
        "model": [None, []],
        "task": [[], 1],
        "labels": [None, {}, [1]],
        "scores": [None, [], {"loss": "x"}],
        "frozen": [None, {"a": "b"}, []],
        "tokenizer_sha256": [None, 1, "x"],
        "files": [None, [], {}, {"../x": {"bytes": 1, "sha256": "0" * 64}}, {"/etc/passwd": {"bytes": 1}}, Gone],
        f"files|{FILE}": [None, 1, {}, {"bytes": -1, "sha256": "0" * 64}, {"bytes": 8}, {"bytes": 8, "sha256": 1}],
        "tensors": [None, [], {"x": None}, {"x": []}, Gone],
        f"tensors|{ENTRY}": [None, [], {}, "x"],
        f"tensors|{ENTRY}|shape": [
            None,
            [33],
            [-1, 33],
            [33, 33, 1],
            [10**19, 1],
            ["33", 33],
            [33.0, 33],
            33,
            [33] * 9,
        ],
        f"tensors|{ENTRY}|dtype": [None, "float31", ["float32"], "float64", Gone],
        f"tensors|{ENTRY}|digest": [None, 1, "x", "0" * 15, Gone],
        f"tensors|{ENTRY}|grid": [None, {}, {"sizes": [[[33, 1]], [[33, 1]]], "ranks": [[0, 0, 1]]}],
        f"tensors|{ENTRY}|rectangles": [None, {}, [], [1], [None], [{}], Gone],
        f"tensors|{ENTRY}|rectangles|0|file": [None, 1, ["x"], "rank-00001.safetensors", "../" + FILE, Gone],
        f"tensors|{ENTRY}|rectangles|0|key": [None, 1, "model/linear.bias@0", Gone],
        f"tensors|{ENTRY}|rectangles|0|offset": [None, [0], [1, 0], [-1, 0], ["0", 0], [0, 0, 0], [10**30, 0], Gone],
        f"tensors|{ENTRY}|rectangles|0|shape": [None, [33], [34, 33], [-33, -33], [0, 33], [33, 33, 1], Gone],
    }
    return [(path, value) for path, values in wrong.items() for value in values]


class Gone:
    pass


def change(manifest: dict, path: str, value: object) -> None:
    *keys, last = [int(key) if key.isdigit() else key for key in path.split("|")]
    for key in keys:
        manifest = manifest[key]
    if value is Gone:
        del manifest[last]
    else:
        manifest[last] = value


def many_rectangles(manifest: dict) -> None:
    manifest["tensors"][ENTRY]["rectangles"] *= 100_000


def overlapping_rectangles(manifest: dict) -> None:
    [whole] = manifest["tensors"][ENTRY]["rectangles"]
    parts = [{**whole, "offset": [row, 0], "key": f"{ENTRY}@{row},0", "shape": [33, 33]} for row in (0, 0)]
    manifest["tensors"][ENTRY]["rectangles"] = [{**part, "shape": [33, 33 - n]} for n, part in enumerate(parts)]


def huge_tensor(manifest: dict) -> None:
    [part] = manifest["tensors"][ENTRY]["rectangles"]
    manifest["tensors"][ENTRY]["shape"] = part["shape"] = [2**30, 2**30]


def grid(sizes: list, ranks: list):
    def edit(manifest: dict) -> None:
        entry = manifest["tensors"][ENTRY]
        del entry["rectangles"]
        entry["grid"] = {"sizes": sizes, "ranks": ranks}

    return edit


def grid_of_many_parts(manifest: dict) -> None:
    grid([[[1, 10**5]], [[1, 10**5]]], [[0, 0, 10**10]])(manifest)
    manifest["tensors"][ENTRY]["shape"] = [10**5, 10**5]


EDITS = [
    many_rectangles,
    overlapping_rectangles,
    huge_tensor,
    grid_of_many_parts,
    grid([[[33, 1]], [[33, 2]]], [[0, 1, 2]]),
    grid([[[33, 1]], [[0, 5], [33, 1]]], [[0, 1, 6]]),
    grid([[[33, 1]], [[33, 1]]], [[0, 1, 10**12]]),
    grid([[[33, 1]], [[33, 1]]], [[-1, 0, 1]]),
    grid([[[33, 1]], [[33, 1]]], [[0, 1]]),
    grid([[[33, 1]]], [[0, 0, 1]]),
    grid([[[33.0, 1]], [[33, 1]]], [[0, 0, 1]]),
    grid("ab", [[0, 0, 1]]),
]


def test_a_manifest_with_a_wrong_value_is_refused_also_with_a_right_checksum(run, trained):
    path = run / "checkpoints/step-00000002"
    original = (path / "manifest.json").read_bytes()
    manifest = json.loads(original)
    del manifest["sha256"]
    cases = [
        (f"{keys} = {value!r:.60}", lambda m, k=keys, v=value: change(m, k, v)) for keys, value in crafted_values()
    ]
    cases += [(edit.__name__, edit) for edit in EDITS]
    assert len(cases) >= 100
    accepted = []
    try:
        for name, edit in cases:
            crafted = copy.deepcopy(manifest)
            edit(crafted)
            write_crafted(path, crafted)
            notes: list[str] = []
            with within_seconds():
                if _manifest(path) is not None:
                    accepted.append(name)
                    continue
                assert checkpoint.resolve(run, notes.append).name == "step-00000001", name
            assert str(path) in notes[0], name
    finally:
        (path / "manifest.json").write_bytes(original)
    assert accepted == [f"tensors|{ENTRY}|grid = None"]  # the same as no grid


def write_crafted(path: Path, manifest: dict) -> None:
    if isinstance(manifest.get("tensors"), dict):
        write_manifest(path, manifest)
    else:
        write_manifest(path, {**manifest, "tensors": {}})
        text = (path / "manifest.json").read_text()
        (path / "manifest.json").write_text(text.replace('"tensors": {', '"other": {'))


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b'{"a": 1, "a": 2}', b"\0" * 100],
    ids=lambda content: repr(content[:12]),
)
def test_a_manifest_that_is_no_manifest_is_refused(run, content):
    path = run / "checkpoints/step-00000002"
    original = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(content)
    try:
        with within_seconds(), pytest.raises(CheckpointError, match="step-00000002"):
            checkpoint.read_manifest(path)
    finally:
        (path / "manifest.json").write_bytes(original)


def outside_link(file: Path) -> None:
    other = file.parent.parent.parent / "other"
    file.rename(other)
    file.symlink_to(other)


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("replace", [outside_link, fifo, device, folder])
@pytest.mark.parametrize("name", [FILE, "manifest.json"])
def test_what_is_no_regular_file_in_the_folder_is_not_opened(run, tmp_path, name, replace):
    shutil.copytree(run, tmp_path / "run")
    replace(tmp_path / "run/checkpoints/step-00000002" / name)
    with within_seconds():
        with pytest.raises(CheckpointError, match=r"regular|cannot be read"):
            checkpoint.read_manifest(tmp_path / "run/checkpoints/step-00000002")
        assert checkpoint.resolve(tmp_path / "run", lambda text: None).name == "step-00000001"


def test_a_copy_with_the_name_of_another_step_is_named_and_skipped(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run / "checkpoints/step-00000001", tmp_path / "run/checkpoints/step-00000099")
    notes: list[str] = []
    assert checkpoint.resolve(tmp_path / "run", notes.append).name == "step-00000002"
    assert "its name says step 99, and it holds step 1" in notes[0]


def sweep(run: Path, engine, expected: dict, number: int) -> None:
    """Flips one bit of each of `number` bytes, spread over the files of a checkpoint, and of the ends of each file."""
    path = run / "checkpoints/step-00000002"
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        every = max(1, len(content) * 2 // number)
        for position in sorted({*range(0, len(content), every), 0, 7, 8, len(content) - 1}):
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            file.write_bytes(damaged)
            try:
                with within_seconds():
                    intact = _loads(path, engine)
                    manifest = _manifest(path)
                    assert manifest is None or find_problems(path, manifest), f"verify misses {file.name} {position}"
                if intact:  # a byte that no tensor depends on
                    assert file.name == FILE
                    for shard in engine.shards():
                        assert torch.equal(shard.tensor, expected[shard.name]), f"{file.name} {position}: {shard.name}"
            finally:
                file.write_bytes(content)


def _manifest(path: Path) -> dict | None:
    try:
        return checkpoint.read_manifest(path)
    except CheckpointError:
        return None


def _loads(path: Path, engine) -> bool:
    for shard in engine.shards():
        shard.tensor.fill_(torch.nan)
    try:
        checkpoint.load(path, engine.shards())
    except checkpoint.CheckpointMismatch as error:
        raise AssertionError(f"damage is taken for another model: {error}") from error
    except CheckpointError:
        return False
    return True


@pytest.mark.parametrize("number", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_flipped_bit_goes_unseen(run, trained, expected, number):
    sweep(run, trained, expected, number)
