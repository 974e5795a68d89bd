import pytest

from ingot.data.corpus import shard_list
from ingot.data.corpus.shard_list import Shard, ShardList
from ingot.data.corpus.shards import Corpus
from ingot.data.loader.reader import Reader, ReaderOptions


def lines(number):
    return [
        {
            "name": f"train-{n}.tar",
            "bytes": 1000 + 20 * n,
            "sha256": f"{n:064x}",
            "tokens": 3 * n,
            "documents": n,
            "index": f"train-{n}.json",
            "index_sha256": f"{n + 7:064x}",
        }
        for n in range(number)
    ]


def test_it_is_a_sequence_of_shards():
    entries = lines(20)
    shards = ShardList(entries, 2)
    assert list(shards) == [Shard(**entry) for entry in entries]
    assert shards[-1] == shards[19]
    assert type(shards[3].tokens) is int  # what json and range take
    with pytest.raises(IndexError):
        shards[20]
    assert [shards.sha256(n) for n in range(20)] == [entry["sha256"] for entry in entries]
    assert shards.tokens.tolist() == [entry["tokens"] for entry in entries]
    assert len(ShardList([], 2)) == 0


def test_the_digest_tells_everything_apart():
    entries = lines(3)
    found = {ShardList(entries, 2).digest(), ShardList(entries[:2], 2).digest(), ShardList(entries[::-1], 2).digest()}
    for key, value in (("sha256", "f" * 64), ("index_sha256", "f" * 64), ("tokens", 5), ("documents", 5)):
        found.add(ShardList([entries[0], {**entries[1], key: value}, entries[2]], 2).digest())
    assert len(found) == 7
    assert ShardList(lines(3), 2).digest() in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, "name '../x' is not the plain name"),
        ({"index_sha256": "F" * 64}, "index_sha256 'F.* is not a sha256"),
        ({"tokens": True}, "tokens is True, which is not a count"),
        ({"bytes": 5}, "train-70.tar of 5 bytes cannot hold 210 tokens"),
        ({"name": "train-3.tar"}, "listed twice"),
    ],
)
def test_one_bad_line_among_many_is_named(change, message):
    entries = lines(100)
    entries[70].update(change)
    with pytest.raises(ValueError, match=message):
        ShardList(entries, 2)


@pytest.mark.parametrize("shuffle", ["full", "window"])
def test_opening_and_seeking_make_no_objects_of_shards(corpus_folder, tokenizer, monkeypatch, shuffle):
    """They are what made opening slow, by their number."""
    made = []
    monkeypatch.setattr(shard_list, "Shard", lambda *fields: made.append(fields) or Shard(*fields))
    corpus = Corpus.open(corpus_folder, "train", check=False)
    reader = Reader(
        [corpus],
        tokenizer,
        ReaderOptions(sequence_length=48, seed=3, shuffle=shuffle, global_batch=8, micro_batch=8, threads=0),
    )
    assert corpus.fingerprint
    assert reader.shards_of(80, None, 8)
    assert made == []
    next(reader.steps(80))
    assert made
