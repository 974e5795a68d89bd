"""Remote corpora, and copies of their shards on disk."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ingot.data.corpus.cache import Cache
from ingot.data.corpus.quarantine import DamagedShard
from ingot.data.corpus.shards import Corpus
from ingot.data.corpus.storage import LocalFolder, RemoteFolder, open_storage
from ingot.data.loader.reader import Reader, ReaderOptions
from ingot.data.tokenizers.load import load_tokenizer

ROOT = Path(__file__).resolve().parents[3]
LENGTH = 48


@pytest.fixture
def remote(corpus_folder):
    """The corpus in fsspec's memory; returns its URL."""
    import fsspec

    files = fsspec.filesystem("memory")
    files.put(f"{corpus_folder}/", "/bucket/corpus/", recursive=True)
    yield "memory://bucket/corpus"
    files.rm("/bucket", recursive=True)


def steps(corpus, tokenizer, **changes):
    options = dict(
        sequence_length=LENGTH,
        objective="clm",
        seed=3,
        shuffle=True,
        global_batch=8,
        micro_batch=8,
        threads=2,
    )
    reader = Reader([corpus], tokenizer, ReaderOptions(**{**options, **changes}))
    result = [step.fingerprint for step in islice(reader.steps(), 30)]
    reader.close()
    return result


def copies(folder):
    return sorted(p.name for p in Path(folder).glob("??/*"))


class FilePart:
    """Shards that count how often they are downloaded."""

    def __init__(self, size=1000):
        self.size, self.count = size, 0

    def content(self, number):
        return bytes([number]) * self.size

    def sha256(self, number):
        return hashlib.sha256(self.content(number)).hexdigest()

    def open(self, cache, number, content=None):
        def download(write):
            self.count += 1
            write(self.content(number) if content is None else content)

        file = cache.open(self.sha256(number), self.size, download)
        if file is None:
            return None
        buffer = np.empty(self.size, dtype=np.uint8)
        file.read_into(buffer, 0)
        return buffer.tobytes()


def test_a_remote_corpus_reads_like_a_local_one(remote, corpus_folder, tokenizer, tmp_path):
    expected = steps(Corpus.open(corpus_folder, "train"), tokenizer)
    assert steps(Corpus.open(remote, "train"), tokenizer) == expected
    cache = Cache(tmp_path / "cache", 10**9)
    corpus = Corpus.open(remote, "train", cache=cache)
    assert corpus.fingerprint == Corpus.open(corpus_folder, "train").fingerprint
    assert load_tokenizer(corpus.tokenizer_folder).sha256 == tokenizer.sha256
    assert steps(corpus, tokenizer) == expected
    assert copies(cache.folder) == sorted(shard.sha256 for shard in corpus.shards)
    assert steps(Corpus.open(f"file://{corpus_folder}", "train"), tokenizer) == expected


def test_places(tmp_path):
    assert isinstance(open_storage(tmp_path), LocalFolder)
    assert isinstance(open_storage("relative/folder"), LocalFolder)
    assert open_storage("file:///a%20b").path == Path("/a b")
    assert isinstance(open_storage("memory://x"), RemoteFolder)
    with pytest.raises(ValueError, match=r"no manifest.json|has no manifest"):
        Corpus.open("memory://nowhere", "train")


def test_a_missing_driver_is_named(monkeypatch):
    import fsspec

    def missing(url):
        raise ImportError("Install s3fs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ValueError, match=r"s3://.* package s3fs: run .* pip install .*\[remote\]"):
        open_storage("s3://bucket/corpus")


def test_coming_shards_are_fetched_ahead(remote, tokenizer, tmp_path):
    cache = Cache(tmp_path / "cache", 10**9)
    corpus = Corpus.open(remote, "train", cache=cache)
    wanted = []
    fetch = corpus.prefetch_shard
    corpus.prefetch_shard = lambda shard: wanted.append(shard) or fetch(shard)
    reader = Reader(
        [corpus],
        tokenizer,
        ReaderOptions(
            sequence_length=LENGTH, seed=3, shuffle=True, global_batch=1, micro_batch=1, threads=1, prefetch=1
        ),
    )
    next(reader.steps())
    assert set(wanted) == {shard for n in range(17) for _, shard in reader.shards_of(n, None, 1)}
    reader.close()


def test_equal_shards_are_kept_once_and_equal_names_do_not_collide(
    remote, corpus_folder, tokenizer, texts, tmp_path, write_corpus
):
    import fsspec

    other = write_corpus(tmp_path / "other", tokenizer, texts[::-1])
    files = fsspec.filesystem("memory")
    files.put(f"{other}/", "/bucket/other/", recursive=True)
    files.put(f"{corpus_folder}/", "/bucket/again/", recursive=True)
    cache = Cache(tmp_path / "cache", 10**9)
    names = ("corpus", "other", "again")
    corpora = [Corpus.open(f"memory://bucket/{name}", "train", cache=cache) for name in names]
    read = [corpus.read(0, 0, 200)[0] for corpus in corpora]
    assert corpora[0].shards[0].name == corpora[1].shards[0].name
    assert np.array_equal(read[0], read[2])
    assert not np.array_equal(read[0], read[1])
    assert len(copies(cache.folder)) == 2


def test_a_poisoned_copy_is_noticed_and_fetched_again(remote, corpus_folder, tmp_path):
    expected = Corpus.open(corpus_folder, "train").read(0, 0, 300)[0]
    Corpus.open(remote, "train", cache=Cache(tmp_path, 10**9)).read(0, 0, 300)
    (path,) = tmp_path.glob("??/*")
    for poison in (lambda content: bytes(len(content)), lambda content: content[:-100], lambda content: b""):
        path.write_bytes(poison(path.read_bytes()))
        corpus = Corpus.open(remote, "train", cache=Cache(tmp_path, 10**9))
        assert np.array_equal(corpus.read(0, 0, 300)[0], expected)
        assert len(corpus.quarantine) == 0
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_a_shard_that_is_damaged_where_it_comes_from_loses_a_bundle_not_more(remote, tmp_path):
    import fsspec

    corpus = Corpus.open(remote, "train", cache=Cache(tmp_path, 10**9))
    shard = corpus.shards[0]
    bundle = json.loads(fsspec.filesystem("memory").cat(f"/bucket/corpus/{shard.index}"))["bundles"][1]
    content = bytearray(fsspec.filesystem("memory").cat(f"/bucket/corpus/{shard.name}"))
    content[bundle["tokens_offset"] + 5] ^= 1
    fsspec.filesystem("memory").pipe(f"/bucket/corpus/{shard.name}", bytes(content))
    with pytest.warns(UserWarning, match="damaged at its source"):
        corpus.read(0, 0, 100)
    with pytest.raises(DamagedShard, match=f"bundle {bundle['key']}"):
        corpus.read(0, 0, shard.tokens)
    assert [(d.bundle, d.shard) for d in corpus.quarantine.take_found()] == [(1, shard.name)]
    assert copies(tmp_path) == []


def test_a_budget_that_evicts_the_least_recently_used_but_nothing_in_use(tmp_path):
    source, cache = FilePart(), Cache(tmp_path, 3500)
    for number in (0, 1, 2):
        assert source.open(cache, number) == source.content(number)
    cache.close()
    for number in (0, 1, 2):  # 1 was used last, 2 longest ago
        os.utime(tmp_path / source.sha256(number)[:2] / source.sha256(number), (0, {0: 20, 1: 30, 2: 10}[number]))
    source.open(cache, 3)
    assert copies(tmp_path) == sorted(source.sha256(n) for n in (0, 1, 3))
    # Another process (here: another cache object, as locks belong to open files) holds two of three.
    cache.close()
    mine = [cache.open(source.sha256(n), 1000, None) for n in (0, 1)]
    assert source.open(Cache(tmp_path, 3500), 4) == source.content(4)
    assert copies(tmp_path) == sorted(source.sha256(n) for n in (0, 1, 4))
    assert all(mine)
    with pytest.warns(UserWarning, match="is full"):
        assert source.open(Cache(tmp_path, 2500), 5) is None
    assert copies(tmp_path) == sorted(source.sha256(n) for n in (0, 1))
    # What this process holds open without reading gives way.
    del mine
    small = Cache(tmp_path, 1500)
    cache.close()
    for number in range(6, 10):
        assert source.open(small, number) == source.content(number)
    assert copies(tmp_path) == [source.sha256(9)]


def test_no_room_falls_back_to_reading_ranges(remote, corpus_folder, tokenizer, tmp_path, monkeypatch):
    expected = steps(Corpus.open(corpus_folder, "train"), tokenizer)
    with pytest.warns(UserWarning, match=r"is full: a shard has .* bytes and the cache may have 100.*range"):
        assert steps(Corpus.open(remote, "train", cache=Cache(tmp_path / "small", 100)), tokenizer) == expected
    real = os.posix_fallocate

    def full(descriptor, offset, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert steps(Corpus.open(remote, "train", cache=Cache(tmp_path / "full", 10**9)), tokenizer) == expected
    monkeypatch.setattr(os, "posix_fallocate", real)
    assert copies(tmp_path / "full") == copies(tmp_path / "small") == []


def test_threads_download_once(tmp_path):
    source, cache = FilePart(100_000), Cache(tmp_path, 10**9)
    results = []
    threads = [threading.Thread(target=lambda: results.append(source.open(cache, 7))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [source.content(7)] * 8
    assert source.count == 1


def test_wrong_length_and_wrong_content_are_tried_again_and_not_kept(tmp_path):
    for wrong in (b"short", bytes(1000), bytes(2000)):
        source, cache = FilePart(), Cache(tmp_path, 10**6)
        with warnings.catch_warnings(record=True):
            assert source.open(cache, 1, content=wrong) is None
        assert source.count == 3
        assert copies(tmp_path) == []


CHILD = """
import hashlib, sys, time
from ingot.data.corpus.cache import Cache
folder, log, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
content = b"x" * 300_000
def download(write):
    print("download", file=open(log, "a"), flush=True)
    for begin in range(0, len(content), 10_000):
        write(content[begin : begin + 10_000])
        time.sleep(seconds / 30)
file = Cache(folder, 10**6).open(hashlib.sha256(content).hexdigest(), len(content), download)
assert hashlib.sha256(open(file.path, "rb").read()).hexdigest() == file.path.name
"""


def child(tmp_path, seconds):
    arguments = [sys.executable, "-c", CHILD, str(tmp_path / "cache"), str(tmp_path / "log"), str(seconds)]
    return subprocess.Popen(arguments, cwd=ROOT)


def test_processes_download_once(tmp_path):
    children = [child(tmp_path, 0.5) for _ in range(3)]
    assert [process.wait(30) for process in children] == [0, 0, 0]
    assert (tmp_path / "log").read_text().split() == ["download"]


def test_a_killed_download_leaves_nothing_that_is_believed(tmp_path):
    process = child(tmp_path, 30)
    while not list((tmp_path / "cache").glob("??/*.part-*")):
        assert process.poll() is None
        time.sleep(0.02)
    waiting = child(tmp_path, 0)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert waiting.wait(30) == 0
    (kept,) = copies(tmp_path / "cache")  # what the killed one left is gone
    assert len(kept) == 64


def test_over_http(corpus_folder, tokenizer, tmp_path):
    """Of a server that knows no ranges."""
    pytest.importorskip("aiohttp")
    shutil.copytree(corpus_folder, tmp_path / "www/corpus")
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "www"))

        def log_message(self, *args):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/corpus"
        expected = steps(Corpus.open(corpus_folder, "train"), tokenizer)
        assert steps(Corpus.open(url, "train", cache=Cache(tmp_path / "cache", 10**9)), tokenizer) == expected
        assert steps(Corpus.open(url, "train"), tokenizer) == expected
        corpus = Corpus.open(url, "train")
        assert load_tokenizer(corpus.tokenizer_folder).sha256 == tokenizer.sha256
        (tmp_path / "www/corpus" / corpus.shards[0].name).unlink()
        with pytest.raises(DamagedShard, match="is missing"):
            corpus.read(0, 0, 10)
    finally:
        server.shutdown()
    assert asked
