"""Corpora made to do harm: nothing of them is executed or written, and each ends in one clear error."""

import gzip
import hashlib
import io
import json
import pickle
import shutil
import sys
import tarfile

import pytest

from ingot.data.corpus import manifest
from ingot.data.corpus.manifest import ShardIndex, read_manifest
from ingot.data.corpus.quarantine import DamagedShard
from ingot.data.corpus.shards import Corpus


class Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def folder(corpus_folder, tmp_path):
    shutil.copytree(corpus_folder, tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.fixture(autouse=True)
def nothing_is_written(request, tmp_path):
    def files():
        return {path for path in tmp_path.rglob("*") if path.name != "__pycache__"}

    yield
    allowed = getattr(request.node, "files", None)
    assert not (tmp_path / "executed").exists()
    assert allowed is None or files() == allowed


def settle(request, tmp_path):
    """From here on nothing may be written."""
    request.node.files = set(tmp_path.rglob("*"))


def hostile_tar(path, trace):
    """A tar whose members try everything that readers of tars were ever caught with."""
    payload = pickle.dumps(Bomb(trace))
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("0.pyd", "0.pickle", "0.pkl", "0.pth", "../outside.npy", "/tmp/absolute.npy", "0.tokens.npy.gz"):
            content = gzip.compress(bytes(50_000_000)) if name.endswith("gz") else payload
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../outside"), (tarfile.CHRTYPE, "")):
            member = tarfile.TarInfo("1.tokens.npy")
            member.type, member.linkname = kind, target
            tar.addfile(member)
    content = bytearray(path.read_bytes())
    content[124:136] = b"77777777777\0"  # a member of 8 GiB
    path.write_bytes(content)


def test_a_hostile_tar_is_neither_parsed_nor_run(folder, tmp_path, request):
    shard = Corpus.open(folder, "train").shards[0]
    hostile_tar(folder / shard.name, tmp_path / "executed")
    settle(request, tmp_path)
    before = set(sys.modules)
    with pytest.raises(DamagedShard, match=f"has .* bytes, not the {shard.bytes} listed"):
        Corpus.open(folder, "train")
    with pytest.raises(DamagedShard, match=rf"{shard.name}.*(checksum|ends before)"):
        Corpus.open(folder, "train", check=False).read(0, 0, shard.tokens)
    assert not {"tarfile", "pickle", "gzip"} & (set(sys.modules) - before)


def test_a_compressed_shard_is_not_unpacked(folder, tmp_path, request):
    shard = Corpus.open(folder, "train").shards[0]
    (folder / shard.name).write_bytes(gzip.compress(bytes(200_000_000))[: shard.bytes].ljust(shard.bytes, b"\0"))
    settle(request, tmp_path)
    with pytest.raises(DamagedShard, match="checksum"):
        Corpus.open(folder, "train").read(0, 0, 10)


@pytest.mark.parametrize(
    "url",
    [
        "pipe:touch executed",
        "pipe:cat /etc/passwd",
        "PIPE://x",
        "ftp://host/corpus",
        "simplecache::http://host/corpus",
        "zip://inner::https://host/x.zip",
        "data:text/plain,x",
        "s3:bucket",
        "http:/host/corpus",
        "ssh://host/corpus",
    ],
)
def test_urls_of_other_kinds_are_refused_by_name(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scheme = url.split(":")[0].lower()
    with pytest.raises(ValueError, match=rf"not a supported URL \('{scheme}'\): .* https://"):
        Corpus.open(url, "train")
    assert list(tmp_path.iterdir()) == []


NAMES = ["../x", "/etc/passwd", "a/b.tar", "..", ".", "", ".x", "pipe:cat x", "a\\b", "a\0b", "x" * 300, 7, None]
HASHES = ["", "z" * 64, "A" * 64, "a" * 63 + " ", " " * 64, "a" * 66, "\u0661" * 64, 5, None, "../" + "a" * 61]
COUNTS = [-1, 2**70, 1.5, "12", None, True, [], float("nan")]


def edit(folder, where, value, split="train"):
    manifest = json.loads((folder / "manifest.json").read_text())
    target = manifest["splits"][split]
    for key in where[:-1]:
        target = target[key]
    target[where[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        *[(("shards", 0, key), name) for name in NAMES for key in ("name", "index")],
        *[(("shards", 0, key), count) for count in COUNTS for key in ("bytes", "tokens", "documents")],
        *[((key,), count) for count in COUNTS for key in ("num_tokens", "num_documents", "text_bytes")],
        *[(("shards", 1, key), value) for value in HASHES for key in ("sha256", "index_sha256")],
        (("shards", 0, "tokens"), 10**12),
        (("shards", 0), "a string"),
        (("shards",), {"a": 1}),
        (("shards",), None),
        (("unigram_entropy",), "x"),
        (("unigram_entropy",), float("inf")),
    ],
)
def test_senseless_manifests(folder, tmp_path, request, where, value):
    edit(folder, where, value)
    settle(request, tmp_path)
    with pytest.raises(ValueError, match=r"manifest.json, split train, is not valid: .*prepare it again"):
        Corpus.open(folder, "train")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"format": ' + "9" * 10_000 + "}", "[]", "null", '"x"', "\xff{"])
def test_manifests_that_are_no_manifests(folder, content):
    (folder / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"manifest.json (is damaged|does not describe a corpus)"):
        read_manifest(folder)


@pytest.mark.parametrize("part", ["splits", "tokenizer"])
def test_manifests_without_their_parts(folder, part):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, part: []}))
    with pytest.raises(ValueError, match="is damaged"):
        Corpus.open(folder, "train")


def rewrite_index(folder, change):
    """Change an index, and let the manifest vouch for it."""
    shard = Corpus.open(folder, "train").shards[0]
    path = folder / shard.index
    index = json.loads(path.read_text())
    path.write_text(json.dumps(change(index) or index))
    edit(folder, ("shards", 0, "index_sha256"), hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("value", [-8, 2**62, 2**70, 1e30, "0", None, True])
@pytest.mark.parametrize("key", ["tokens_offset", "num_tokens", "doclens_offset", "num_documents", "tokens_crc32"])
def test_senseless_indexes(folder, tmp_path, request, key, value):
    rewrite_index(folder, lambda index: index["bundles"][0].update({key: value}))
    settle(request, tmp_path)
    with pytest.raises(DamagedShard, match=r"is not valid"):
        Corpus.open(folder, "train").read(0, 0, 10)


@pytest.mark.parametrize("bundles", [None, {}, [[]], [], "x", [{"key": 1}]])
def test_indexes_of_another_form(folder, bundles):
    rewrite_index(folder, lambda index: index.update(bundles=bundles))
    with pytest.raises(DamagedShard, match="is not valid"):
        Corpus.open(folder, "train").read(0, 0, 1)


def test_an_offset_that_points_elsewhere_in_the_file_meets_the_checksum(folder):
    rewrite_index(folder, lambda index: index["bundles"][0].update(tokens_offset=0))
    with pytest.raises(DamagedShard, match="checksum"):
        Corpus.open(folder, "train").read(0, 0, 10)


def test_files_without_end_are_not_read(folder, monkeypatch):

    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        Corpus.open(folder, "train")
    monkeypatch.undo()
    monkeypatch.setattr(manifest, "MAX_INDEX_BYTES", 100)
    corpus = Corpus.open(folder, "train")
    with pytest.raises(DamagedShard, match="too large"):
        ShardIndex.load(corpus.storage, corpus.shards[0], corpus.dtype)
