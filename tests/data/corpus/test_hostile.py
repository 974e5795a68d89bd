"""Corpora made to do harm: nothing of them is executed or written, and each ends in one clear error."""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import tarfile

import pytest

from ingot.data.corpus import bundles, manifest
from ingot.data.corpus.manifest import ShardIndex, read_manifest, read_split
from ingot.data.corpus.quarantine import DamagedShard
from ingot.data.corpus.shards import Corpus
from ingot.data.loader.batch_sharding import check_corpora


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
        (("unigram_entropy",), -1.0),
        (("unigram_entropy",), 10**400),
    ],
)
def test_senseless_manifests(folder, tmp_path, request, where, value):
    edit(folder, where, value)
    settle(request, tmp_path)
    with pytest.raises(ValueError, match=r"manifest.json, split train, is not valid: .*prepare it again"):
        Corpus.open(folder, "train")


@pytest.mark.parametrize("vocab_size", [0, -1, 10**9, 2**60, "340", None, True])
def test_senseless_vocabularies(folder, vocab_size):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokenizer"]["vocab_size"] = vocab_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest.json, split train, is not valid: vocab_size is"):
        Corpus.open(folder, "train")


def test_ids_beyond_the_vocabulary_are_not_read(folder, tokenizer):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokenizer"]["vocab_size"] = 300
    (folder / "manifest.json").write_text(json.dumps(manifest))
    corpus = Corpus.open(folder, "train")
    with pytest.raises(DamagedShard, match=r"has token id 3\d\d, and the vocabulary .* has 300 ids: prepare"):
        corpus.read(0, 0, 10)
    with pytest.raises(ValueError, match="says that its vocabulary has 300 ids, and its tokenizer has 340"):
        check_corpora([corpus], tokenizer, 16)


def test_a_key_that_stands_twice(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"num_documents"', '"num_tokens"', 1))
    with pytest.raises(ValueError, match="'num_tokens' stands twice"):
        read_manifest(folder)


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


def corpus_shards(folder):
    return read_split(read_manifest(folder), "train", "").shards


def rewrite_index(folder, change, check=True):
    """Change an index, and let the manifest vouch for it."""
    shard = Corpus.open(folder, "train", check=check).shards[0]
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


def test_a_shard_of_a_terabyte_without_content(folder):
    shard, *others = corpus_shards(folder)
    with (folder / shard.name).open("r+b") as file:
        file.truncate(2**40)
    whole = {"num_tokens": 2**38, "num_documents": 2**20}
    rewrite_index(folder, lambda index: {**index, "bundles": [index["bundles"][0] | whole]}, check=False)
    for key, value in {"bytes": 2**40, "tokens": 2**38}.items():
        edit(folder, ("shards", 0, key), value)
    edit(folder, ("num_tokens",), 2**38 + sum(other.tokens for other in others))
    with pytest.raises(DamagedShard, match=r"have 549,755,813,888 bytes, and at most 1,073,741,824 are read"):
        Corpus.open(folder, "train").read(0, 0, 10)


@pytest.mark.parametrize("kind", ["named pipe", "device", "folder"])
@pytest.mark.parametrize("part", ["manifest.json", "index", "name"])
def test_what_is_no_file_is_not_waited_for(folder, kind, part):
    corpus = Corpus.open(folder, "train")
    path = folder / (part if part == "manifest.json" else getattr(corpus.shards[0], part))
    path.unlink()
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(ValueError, match=rf"{path.name}.* is a {kind}, not a regular file"):
        Corpus.open(folder, "train", check=False).read(0, 0, 10)
    if part == "name":
        with pytest.raises(DamagedShard, match="bytes, not the"):
            Corpus.open(folder, "train")


def test_links_to_files_elsewhere_are_read(folder, tmp_path):
    """As in the cache of the hub."""
    (tmp_path / "blobs").mkdir()
    for path in list(folder.glob("*.*")):
        path.symlink_to(path.rename(tmp_path / "blobs" / path.name))
    Corpus.open(folder, "train").read(0, 0, 10)


@pytest.mark.parametrize("closed", [False, True])
def test_a_shard_that_is_overwritten_while_it_is_read(folder, closed):
    corpus = Corpus.open(folder, "train")
    shard = corpus.shards[0]
    tokens, _ = corpus.read(0, 0, 10)
    content = (folder / shard.name).read_bytes()
    (folder / shard.name).write_bytes(content)  # the same bytes: it is verified again, and read
    if closed:
        corpus.close()
    assert corpus.read(0, 0, 10)[0].tolist() == tokens.tolist()
    other = bytearray(content)
    place = content.index(tokens.astype("<u2").tobytes())
    other[place : place + 20] = other[place : place + 20][::-1]
    (folder / shard.name).write_bytes(other)
    if closed:
        corpus.close()
    with pytest.raises(DamagedShard, match="do not match their checksum: copy the file again"):
        corpus.read(0, 0, 10)


def test_a_shard_that_is_replaced_by_another_of_its_size(folder):
    corpus = Corpus.open(folder, "train")
    shard = corpus.shards[0]
    corpus.read(0, 0, 10)
    (folder / "new").write_bytes(bytes(shard.bytes))
    (folder / "new").rename(folder / shard.name)
    with pytest.raises(DamagedShard, match="do not match their checksum"):
        corpus.read(0, 0, 10)


def test_a_large_bundle_is_verified_in_parts(folder, monkeypatch):
    tokens, starts = Corpus.open(folder, "train").read(0, 0, 1000)
    monkeypatch.setattr(bundles, "READ_BYTES", 100)
    again = Corpus.open(folder, "train").read(0, 0, 1000)
    assert (again[0].tolist(), again[1].tolist()) == (tokens.tolist(), starts.tolist())
    shard = corpus_shards(folder)[0]
    content = bytearray((folder / shard.name).read_bytes())
    content[content.index(tokens.tobytes()) + 1500] ^= 1
    (folder / shard.name).write_bytes(content)
    with pytest.raises(DamagedShard, match="do not match their checksum"):
        Corpus.open(folder, "train").read(0, 0, 10)


def test_files_without_end_are_not_read(folder, monkeypatch):
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 1000)
    with pytest.raises(ValueError, match="more than the 1,000 of such a file"):
        Corpus.open(folder, "train")
    monkeypatch.undo()
    monkeypatch.setattr(manifest, "MAX_INDEX_BYTES", 100)
    corpus = Corpus.open(folder, "train")
    with pytest.raises(DamagedShard, match="more than the 100 of such a file"):
        ShardIndex.load(corpus.storage, corpus.shards[0], corpus.dtype)
