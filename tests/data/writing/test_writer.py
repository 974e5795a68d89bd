import multiprocessing

import pytest

from ingot.data.corpus.shards import Corpus
from ingot.data.writing.writer import atomic_corpus_folder, write_json


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_documents_same_bytes(tmp_path, corpus_folder, tokenizer, texts, write_corpus):
    assert contents(write_corpus(tmp_path / "again", tokenizer, texts)) == contents(corpus_folder)


def test_sizes_of_shards_and_bundles(corpus_folder, tokenizer, tmp_path, texts, write_corpus):
    for split in ("train", "validation"):
        assert all(
            shard.bytes <= 12_000 + 10_240 for shard in Corpus.open(corpus_folder, split).shards
        )  # tar pads its end
    one = Corpus.open(write_corpus(tmp_path / "one", tokenizer, texts, shard_bytes=10**9), "train")
    assert len(one.shards) == 1
    assert one.num_tokens == Corpus.open(corpus_folder, "train").num_tokens


def test_nothing_is_left_of_a_failed_run(tmp_path):
    def fail():
        with atomic_corpus_folder(tmp_path / "out") as folder:
            (folder / "train-000000.tar").write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_run_are_cleared(tmp_path):
    (tmp_path / "out.partial" / "tokenizer").mkdir(parents=True)
    (tmp_path / "out.partial" / "train-000007.tar").write_bytes(b"half")
    with atomic_corpus_folder(tmp_path / "out") as folder:
        write_json(folder / "manifest.json", {})
    assert list(contents(tmp_path)) == ["out/manifest.json"]


def test_an_existing_corpus_is_replaced_only_on_request(tmp_path):
    out = tmp_path / "out"
    for number, overwrite in enumerate([False, True]):
        with atomic_corpus_folder(out, overwrite) as folder:
            write_json(folder / "manifest.json", {"number": number})
    with pytest.raises(ValueError, match="--overwrite"), atomic_corpus_folder(out):
        pass
    assert contents(tmp_path) == {"out/manifest.json": b'{\n "number": 1\n}\n'}
    with pytest.raises(RuntimeError), atomic_corpus_folder(out, overwrite=True):
        raise RuntimeError  # the old one stays until the new one is whole
    assert list(contents(tmp_path)) == ["out/manifest.json"]


def test_what_is_no_corpus_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not a corpus"), atomic_corpus_folder(tmp_path, overwrite=True):
        pass
    assert (tmp_path / "thesis.txt").exists()


def _hold(output, entered, leave):
    with atomic_corpus_folder(output) as folder:
        entered.set()
        leave.wait(20)
        write_json(folder / "manifest.json", {})


def test_two_runs_at_once_are_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    entered, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "out", entered, leave))
    other.start()
    try:
        assert entered.wait(20)
        with pytest.raises(ValueError, match="another run"), atomic_corpus_folder(tmp_path / "out"):
            pass
    finally:
        leave.set()
        other.join()
    assert other.exitcode == 0
    assert list(contents(tmp_path)) == ["out/manifest.json"]
