"""Sequences that begin in one shard and end in a later one."""

import numpy as np
import pytest

from ingot.data.corpus import shards
from ingot.data.corpus.cache import Cache
from ingot.data.corpus.quarantine import WHOLE_SHARD, DamagedShard, Quarantine
from ingot.data.corpus.shards import Corpus
from ingot.data.loader.reader import Reader, ReaderOptions
from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.sequences.packing import instances_by_shard
from ingot.data.sequences.packings import ConcatenatePacking
from ingot.data.writing.writer import CorpusWriter
from tests.data.number_tokenizer import number_tokenizer

IDS = number_tokenizer(500, bos_id=0, eos_id=1, pad_id=2, mask_id=3)
LENGTH = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seams")
    writer = CorpusWriter(folder, IDS, shard_bytes=8_000, bundle_tokens=500)
    for number in range(150):
        document = [4 + (number * 7919 + place * 104_729) % 496 for place in range(number % 97)]
        writer.add("train", str(number), document, len(document))
    writer.finish()
    return folder


def stream(corpus):
    """All tokens of a corpus, and True where a document begins."""
    parts = [corpus.read(number, 0, shard.tokens) for number, shard in enumerate(corpus.shards)]
    begins = [np.isin(np.arange(len(tokens)), starts) for tokens, starts in parts]
    return np.concatenate([tokens for tokens, _ in parts]), np.concatenate(begins)


def reader(corpus, rank=0, num_ranks=1, **changes):
    settings = dict(
        sequence_length=LENGTH,
        objective="clm",
        seed=3,
        shuffle=False,
        global_batch=1,
        micro_batch=1,
        threads=0,
        strict=False,
    )
    return Reader([corpus], IDS, ReaderOptions(**{**settings, **changes}), rank=rank, num_ranks=num_ranks)


def crossing(corpus, length=LENGTH):
    """The instances that begin in one shard and end in another, and which shards these are."""
    ends = np.cumsum([shard.tokens for shard in corpus.shards])
    first = np.arange((ends[-1] - 1) // length) * length
    shards = [np.searchsorted(ends, place, side="right") for place in (first, first + length)]
    return {int(i): (int(shards[0][i]), int(shards[1][i])) for i in np.flatnonzero(shards[0] != shards[1])}


@pytest.mark.parametrize("length", [1, LENGTH, 5_000])
def test_sequences_are_consecutive_pieces_of_the_whole_corpus(folder, length):
    corpus = Corpus.open(folder, "train")
    tokens, begins = stream(corpus)
    assert len(corpus.shards) > 3
    assert length != 5_000 or max(shard.tokens for shard in corpus.shards) < length
    layout = ConcatenatePacking(corpus, length)
    places = [(shard, place) for shard, count in enumerate(layout.shard_instances) for place in range(count)]
    assert len(places) == (len(tokens) - 1) // length
    for number, (shard, place) in enumerate(places[:: 1 if length > 1 else 97]):
        row = np.empty(length + 1, dtype=corpus.dtype)
        starts, shift, filled = layout.read_into(row, shard, place)
        here = slice(number * (1 if length > 1 else 97) * length, None)
        assert filled == length + 1
        assert np.array_equal(row, tokens[here][: length + 1])
        assert np.array_equal(starts - shift, np.flatnonzero(begins[here][: length + 1]))


def test_instances_are_counted_where_they_begin():
    draw = np.random.default_rng(0)
    for _ in range(50):
        sizes = draw.integers(0, 40, draw.integers(1, 12))
        length = int(draw.integers(1, 60))
        counts, first = instances_by_shard(sizes, length)
        ends = np.cumsum(sizes)
        starts = np.arange(max(0, (ends[-1] - 1) // length)) * length
        shard = np.searchsorted(ends, starts, side="right")
        assert np.array_equal(counts, np.bincount(shard, minlength=len(sizes)))
        found = [first[s] + k * length + ends[s] - sizes[s] for s, n in enumerate(counts) for k in range(n)]
        assert found == starts.tolist()
    assert [array.tolist() for array in instances_by_shard(np.empty(0, dtype=np.int64), 4)] == [[], []]


def test_every_token_is_a_target_once_but_for_first_tokens_and_the_corpus_tail(folder):
    corpus = Corpus.open(folder, "train")
    tokens, begins = stream(corpus)
    labels = np.concatenate([b.micro_batches[0]["labels"][0] for b in reader(corpus).steps(0, len(tokens) // LENGTH)])
    due = tokens[1 : 1 + len(labels)].astype(np.int64)
    due[begins[1 : 1 + len(labels)]] = IGNORE_INDEX
    assert len(tokens) - 1 - len(labels) < LENGTH
    assert np.array_equal(labels, due)


def test_damage_on_either_side_replaces_just_the_sequences_that_touch_it(folder):
    corpus = Corpus.open(folder, "train")
    sound = [batch.fingerprint for batch in reader(corpus).steps(0, reader(corpus).num_instances)]
    for damaged in range(len(corpus.shards)):
        names = [(corpus.shards[damaged].sha256, WHOLE_SHARD)]
        found = list(
            reader(Corpus.open(folder, "train", quarantine=Quarantine(names))).steps(0, len(sound))
        )  # strict is off
        counts = instances_by_shard(np.array([shard.tokens for shard in corpus.shards]), LENGTH)[0]
        first = int(counts[:damaged].sum())
        touching = set(range(first, first + int(counts[damaged])))
        touching |= {instance for instance, shards in crossing(corpus).items() if damaged in shards}
        assert {n for n, batch in enumerate(found) if batch.substituted} == touching
        assert {n for n, batch in enumerate(found) if batch.fingerprint != sound[n]} == touching
    assert len(crossing(corpus)) == len(corpus.shards) - 1


def test_only_the_damaged_bundle_counts_not_the_shard_that_a_sequence_begins_in(folder):
    corpus = Corpus.open(folder, "train")
    (instance, (_, after)) = next(iter(crossing(corpus).items()))
    quarantine = Quarantine([(corpus.shards[after].sha256, 0)])
    steps = reader(Corpus.open(folder, "train", quarantine=quarantine)).steps(0, instance + 1)
    assert [batch.substituted for batch in steps] == [0] * instance + [1]


def test_the_same_sequences_stand_in_for_damaged_ones_in_every_layout(folder):
    names = [(Corpus.open(folder, "train").shards[1].sha256, 0)]

    def fingerprints(num_ranks, threads):
        streams = [
            reader(
                Corpus.open(folder, "train", quarantine=Quarantine(names)),
                **dict(shuffle=True, global_batch=8, rank=rank, num_ranks=num_ranks, threads=threads),
            ).steps(0, 8 * 20)
            for rank in range(num_ranks)
        ]
        return [sum(b.fingerprint for b in step) % 2**64 for step in zip(*streams, strict=True)]

    assert fingerprints(1, 0) == fingerprints(2, 2) == fingerprints(8, 1)


def test_the_shard_after_is_read_in_passing_and_not_downloaded(folder, tmp_path):
    """Whoever reads one shard of a remote corpus has that one in the cache, and no other."""
    import fsspec

    files = fsspec.filesystem("memory")
    files.put(f"{folder}/", "/seams/", recursive=True)
    local, cache = Corpus.open(folder, "train"), Cache(tmp_path, 10**9)
    corpus = Corpus.open("memory://seams", "train", cache=cache)
    tokens, _ = stream(local)
    layout = ConcatenatePacking(corpus, LENGTH)
    before = 0
    for place in range(int(layout.shard_instances[0])):
        row = np.empty(LENGTH + 1, dtype=corpus.dtype)
        layout.read_into(row, 0, place)
        assert np.array_equal(row, tokens[before : before + LENGTH + 1])
        before += LENGTH
    assert before + 1 > corpus.shards[0].tokens
    assert [path.name for path in tmp_path.glob("??/*")] == [corpus.shards[0].sha256]
    corpus.read(1, 0, 10)
    corpus.read(0, 0, 10)
    layout.read_into(row, 0, int(layout.shard_instances[0]) - 1)  # from the copy, now that there is one
    assert np.array_equal(row, tokens[before - LENGTH : before + 1])
    assert len(list(tmp_path.glob("??/*"))) == 2
    files.rm("/seams", recursive=True)


def test_a_corpus_of_shards_shorter_than_a_sequence_can_be_read(folder):
    corpus = Corpus.open(folder, "train")
    assert reader(corpus, sequence_length=corpus.num_tokens - 1).num_instances == 1
    message = rf"one sequence needs {corpus.num_tokens + 1}: .* at most {corpus.num_tokens - 1}"
    with pytest.raises(ValueError, match=message):
        reader(corpus, sequence_length=corpus.num_tokens)


def test_runs_of_the_order_before_are_not_gone_on_with(folder, monkeypatch):

    now = Corpus.open(folder, "train").fingerprint
    monkeypatch.setattr(shards, "PACKING_VERSION", 1)
    assert Corpus.open(folder, "train").fingerprint != now


def test_a_missing_shard_after_is_damage_like_any_other(folder, tmp_path):
    import fsspec

    files = fsspec.filesystem("memory")
    files.put(f"{folder}/", "/gap/", recursive=True)
    corpus = Corpus.open("memory://gap", "train", cache=Cache(tmp_path, 10**9))
    files.rm(f"/gap/{corpus.shards[1].name}")
    layout = ConcatenatePacking(corpus, LENGTH)
    row = np.empty(LENGTH + 1, dtype=corpus.dtype)
    with pytest.raises(DamagedShard, match=rf"{corpus.shards[1].name}: shard is missing"):
        layout.read_into(row, 0, int(layout.shard_instances[0]) - 1)
    assert corpus.quarantine.find(corpus.shards[1].sha256, 5)[0]
    assert not corpus.quarantine.find(corpus.shards[0].sha256, 0)[0]
    files.rm("/gap", recursive=True)
