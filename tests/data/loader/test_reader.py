import json
import shutil
import threading
from itertools import islice

import numpy as np
import pytest

from ingot.data.corpus.quarantine import DamagedShard
from ingot.data.corpus.shards import Corpus
from ingot.data.loader.reader import Reader, ReaderOptions
from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.training import train_sentencepiece

LENGTH, GLOBAL = 48, 8


@pytest.fixture(scope="module")
def second_folder(tmp_path_factory, tokenizer, texts, write_corpus):
    return write_corpus(tmp_path_factory.mktemp("second") / "c", tokenizer, texts[::-2])


@pytest.fixture
def make(corpus_folder, second_folder, tokenizer):
    made = []

    def make(split="train", mixture=True, rank=0, num_ranks=1, tokenizer=tokenizer, **changes):
        corpora = [
            Corpus.open(folder, split) for folder in ([corpus_folder, second_folder] if mixture else [corpus_folder])
        ]
        options = dict(
            sequence_length=LENGTH,
            objective="clm",
            weights=[3, 1] if mixture else None,
            seed=3,
            shuffle=True,
            global_batch=GLOBAL,
            micro_batch=2,
        )
        options = ReaderOptions(**{**options, **changes})
        made.append(Reader(corpora, tokenizer, options, rank=rank, num_ranks=num_ranks))
        return made[-1]

    yield make
    for reader in made:
        reader.close()


def fingerprints(readers, cursor, steps):
    """The step's fingerprint over all ranks, for some steps."""
    streams = [reader.steps(cursor) for reader in readers]
    return [sum(next(s).fingerprint for s in streams) % 2**64 for _ in range(steps)]


STEPS = 60  # several epochs of both corpora


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_fingerprints_do_not_depend_on_the_layout(make, objective):
    reference = fingerprints([make(objective=objective, threads=0)], 0, STEPS)
    assert len(set(reference)) == STEPS
    for num_ranks in (1, 2, 4, 8):
        for micro in [m for m in (1, 2, 4, 8) if m <= GLOBAL // num_ranks]:
            for threads, prefetch in ((0, 1), (2, 4), (3, 1)):
                layout = dict(num_ranks=num_ranks, micro_batch=micro, threads=threads, prefetch=prefetch)
                readers = [make(objective=objective, rank=rank, **layout) for rank in range(num_ranks)]
                assert fingerprints(readers, 0, 6) == reference[:6], layout
                for reader in readers:
                    reader.close()


def test_resume_at_every_step_on_another_layout(make):
    reference = fingerprints([make(threads=0)], 0, STEPS)
    readers = [make(rank=rank, num_ranks=4, threads=1) for rank in range(4)]
    for done in range(STEPS):
        assert fingerprints(readers, done * GLOBAL, 1) == [reference[done]]
    assert fingerprints([make(micro_batch=8)], 17 * GLOBAL, 10) == reference[17:27]


def test_another_global_batch_takes_the_same_slots(make):
    small = list(make(threads=0).steps(0, 24 * 8))
    large = list(make(threads=0, global_batch=24, micro_batch=8).steps(0, 24 * 8))
    rows = [np.concatenate([m["input_ids"] for step in steps for m in step.micro_batches]) for steps in (small, large)]
    assert np.array_equal(*rows)


def test_fingerprint_notices_seed_slot_and_exchanged_tokens(make):
    reader = make(threads=0)
    step = next(reader.steps())
    assert fingerprints([make(seed=4)], 0, 1) != [step.fingerprint]
    assert fingerprints([reader], GLOBAL, 1) != [step.fingerprint]
    read_into = reader.corpora[0].read_into

    def exchanged(tokens, shard, start):
        starts = read_into(tokens, shard, start)
        tokens[[10, 11]] = tokens[[11, 10]]
        return starts

    reader.corpora[0].read_into = exchanged
    assert fingerprints([reader], 0, 1) != [step.fingerprint]


def test_fingerprint_tells_slots_of_equal_content_apart(make):
    reader = make(mixture=False, shuffle=False, threads=0, global_batch=1, micro_batch=1)
    first, again = (next(reader.steps(start)) for start in (0, reader.num_instances))
    assert np.array_equal(first.micro_batches[0]["input_ids"], again.micro_batches[0]["input_ids"])
    assert first.fingerprint != again.fingerprint


def test_ranks_take_contiguous_parts(make):
    whole = next(make(threads=0, micro_batch=8).steps(16)).micro_batches[0]["input_ids"]
    parts = [
        micro["input_ids"]
        for rank in range(4)
        for micro in next(make(rank=rank, num_ranks=4, micro_batch=1).steps(16)).micro_batches
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_an_epoch_is_every_instance_once(make):
    reader = make(mixture=False, threads=0, global_batch=1, micro_batch=1)
    corpus = reader.corpora[0]
    stream = np.concatenate([corpus.read(n, 0, shard.tokens)[0] for n, shard in enumerate(corpus.shards)])
    expected = sorted(stream[: (len(stream) - 1) // LENGTH * LENGTH].reshape(-1, LENGTH).tolist())
    assert reader.num_instances == len(expected) > 100
    got = [step.micro_batches[0]["input_ids"][0].tolist() for step in reader.steps(0, reader.num_instances)]
    assert sorted(got) == expected
    assert got != expected


def test_batches_respect_documents(make, tokenizer):
    for step in islice(make(mixture=False).steps(), 20):
        assert step.num_tokens == GLOBAL * LENGTH
        assert step.num_targets == sum(int((m["labels"] != IGNORE_INDEX).sum()) for m in step.micro_batches)
        for micro in step.micro_batches:
            ids, labels, positions = micro["input_ids"], micro["labels"], micro["positions"]
            assert ids.shape == labels.shape == positions.shape == (2, LENGTH)
            assert ids.dtype == labels.dtype == positions.dtype == np.int64
            starts = ids == tokenizer.bos_id
            starts[:, 0] = True
            assert np.array_equal(positions == 0, starts)
            assert np.array_equal(micro["cu_seqlens"], np.append(np.flatnonzero(starts), ids.size))
            assert micro["cu_seqlens"].dtype == np.int32
            inner = labels[:, :-1]
            assert np.array_equal(inner == IGNORE_INDEX, ids[:, :-1] == tokenizer.eos_id)
            assert np.array_equal(inner[inner != IGNORE_INDEX], ids[:, 1:][inner != IGNORE_INDEX])


def test_masks_change_with_the_epoch(make):
    reader = make(mixture=False, objective="mlm", threads=0, global_batch=1, micro_batch=1, shuffle=False)
    first, second = (next(reader.steps(start)).micro_batches[0] for start in (0, reader.num_instances))
    tokens = [np.where(m["labels"] != IGNORE_INDEX, m["labels"], m["input_ids"]) for m in (first, second)]
    assert np.array_equal(*tokens)
    assert not np.array_equal(first["labels"], second["labels"])


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_validation_ends_exactly(make, num_ranks, objective):
    """Sums over targets are those of the instances, each once, whatever the layout; no rank runs out early."""
    whole = make("validation", mixture=False, shuffle=False, objective=objective, global_batch=1, micro_batch=1)
    stop = whole.num_instances
    assert stop % GLOBAL
    expected = list(whole.steps(0, stop))
    layout = dict(shuffle=False, objective=objective, num_ranks=num_ranks)
    runs = [list(make("validation", mixture=False, rank=r, **layout).steps(0, stop)) for r in range(num_ranks)]
    assert {len(steps) for steps in runs} == {-(-stop // GLOBAL)}
    steps = [step for run in runs for step in run]
    assert {len(step.micro_batches) for step in steps} == {GLOBAL // num_ranks // 2}
    assert sum(s.num_targets for s in steps) == sum(s.num_targets for s in expected)
    assert sum(s.num_tokens for s in steps) == stop * LENGTH
    assert sum(s.fingerprint for s in steps) % 2**64 == sum(s.fingerprint for s in expected) % 2**64
    assert runs[0][-1].cursor == stop


def test_cursor_counts_slots(make):
    assert [step.cursor for step in islice(make(num_ranks=2).steps(16), 3)] == [24, 32, 40]
    assert list(make().steps(16, 16)) == []


def reader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("reader")]


def test_threads_stop_with_the_iterator_and_with_the_reader(make):
    reader = make(threads=3, prefetch=8)
    steps = reader.steps()
    next(steps)
    assert reader_threads()
    steps.close()
    assert not reader_threads()
    steps = reader.steps()
    next(steps)
    reader.close()
    assert not reader_threads()
    assert list(steps) == []


@pytest.mark.parametrize("threads", [0, 2])
def test_damage_reaches_the_consumer(make, corpus_folder, tmp_path, tokenizer, threads):
    folder = tmp_path / "damaged"
    shutil.copytree(corpus_folder, folder)
    shard = Corpus.open(folder, "train").shards[0]
    offset = json.loads((folder / shard.index).read_text())["bundles"][0]["tokens_offset"]
    with open(folder / shard.name, "r+b") as file:
        file.seek(offset + 100)
        file.write(b"\xff\x00\xff")
    corpora = [Corpus.open(folder, "train")]
    options = dict(sequence_length=LENGTH, seed=0, shuffle=True, global_batch=8, micro_batch=8)
    reader = Reader(corpora, tokenizer, ReaderOptions(threads=threads, **options))
    with pytest.raises(DamagedShard, match="checksum"):
        list(islice(reader.steps(), 50))
    assert not reader_threads()


def test_batches_that_cannot_be_divided(make):
    with pytest.raises(ValueError, match=r"8 sequences .* 3 data ranks: .* 6 or 9, or 2 or 4 data ranks"):
        make(num_ranks=3)
    with pytest.raises(ValueError, match=r"micro-batch of 3 .* the 4 sequences of each rank .* 2 or 4"):
        make(num_ranks=2, micro_batch=3)
    with pytest.raises(ValueError, match="must be positive"):
        make(micro_batch=0)


def test_wrong_tokenizer(make, corpus_folder, tmp_path, texts, gpt2_like, write_corpus):
    other = train_sentencepiece(texts, tmp_path / "other", 341)
    with pytest.raises(ValueError, match=f"{corpus_folder}.*another tokenizer.*{tmp_path / 'other'}"):
        make(tokenizer=other)
    folder = write_corpus(tmp_path / "gpt2", load_tokenizer(gpt2_like), texts)
    with pytest.raises(ValueError, match="no mask token"):
        Reader(
            [Corpus.open(folder, "train")],
            load_tokenizer(gpt2_like),
            ReaderOptions(sequence_length=LENGTH, objective="mlm", seed=0, shuffle=True, global_batch=1, micro_batch=1),
        )


def test_other_bad_input(make):
    with pytest.raises(ValueError, match=r"one sequence needs 100001: .* at most \d+"):
        make(sequence_length=100_000)
    with pytest.raises(ValueError, match="choose one of clm, mlm"):
        make(objective="nsp")
