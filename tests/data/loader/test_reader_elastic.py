"""The order of a run is one, whatever it runs on: ranks, threads, accumulation, restarts."""

import hashlib

import pytest

from ingot.data.corpus.shards import Corpus
from ingot.data.loader.reader import Reader, ReaderOptions
from ingot.data.writing.writer import CorpusWriter
from tests.data.number_tokenizer import number_tokenizer

LENGTH, GLOBAL, STEPS = 48, 24, 200
GOLDEN = "4cd8174d07a37c8e10c5a31a320171c7"


@pytest.fixture(scope="module")
def corpora(corpus_folder, tmp_path_factory, tokenizer, texts, write_corpus):
    other = write_corpus(tmp_path_factory.mktemp("elastic") / "c", tokenizer, texts[::3])
    return [Corpus.open(folder, "train") for folder in (corpus_folder, other)]


@pytest.fixture
def run(corpora, tokenizer):
    """run(steps, cursor, num_ranks, ...) -> the batch fingerprint of each step, over all ranks."""

    def run(steps=STEPS, cursor=0, *, num_ranks=1, micro_batch=1, threads=0):
        options = ReaderOptions(
            sequence_length=LENGTH,
            weights=[2, 1],
            seed=11,
            shuffle=True,
            global_batch=GLOBAL,
            micro_batch=micro_batch,
            threads=threads,
        )
        streams = [
            Reader(corpora, tokenizer, options, rank=rank, num_ranks=num_ranks).steps(cursor, cursor + steps * GLOBAL)
            for rank in range(num_ranks)
        ]
        return [sum(batch.fingerprint for batch in step) % 2**64 for step in zip(*streams, strict=True)]

    return run


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def reference(kept, run):
    if "run" not in kept:
        kept["run"] = run()
    return kept["run"]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, *(pytest.param(n, marks=pytest.mark.slow) for n in (6, 8, 12))])
def test_200_steps_are_the_same_for_any_ranks_threads_and_accumulation(reference, run, num_ranks):
    share = GLOBAL // num_ranks
    assert run(num_ranks=num_ranks, micro_batch=share, threads=1) == reference
    for threads in (0, 4):
        for micro_batch in (m for m in range(1, share + 1) if share % m == 0):
            layout = dict(num_ranks=num_ranks, micro_batch=micro_batch, threads=threads)
            assert run(20, 60 * GLOBAL, **layout) == reference[60:80], layout


def test_a_run_may_stop_after_any_step_and_go_on_with_other_ranks(reference, run, corpora):
    """The 40 steps cross several ends of epochs of both corpora."""
    instances = [(corpus.num_tokens - 1) // LENGTH for corpus in corpora]
    assert instances[0] < 40 * GLOBAL * 2 / 3
    assert 2 * instances[1] < 40 * GLOBAL / 3
    degrees = (1, 2, 3, 4, 6, 8, 12)
    for done in range(40):
        num_ranks = degrees[done % len(degrees)]
        micro_batch = GLOBAL // num_ranks if done % 2 else 1
        rest = run(40 - done, done * GLOBAL, num_ranks=num_ranks, micro_batch=micro_batch, threads=done % 3)
        assert rest == reference[done:40], (done, num_ranks)


def test_restarts_one_after_another(reference, run):
    done, found = 0, []
    for num_ranks, steps in ((12, 1), (1, 7), (3, 1), (8, 13), (2, 5), (6, 13)):
        found += run(steps, done * GLOBAL, num_ranks=num_ranks)
        done += steps
    assert found == reference[:done]


def test_golden_fingerprints(tmp_path):
    """Of tokens made by arithmetic, so that no tokenizer has a say. Another hash means that every run's order changed:
    then the order, the packing, the corpus format or the fingerprint has to say so with a new version. This one is that
    of packing 2, in which sequences go on from shard to shard."""
    ids = number_tokenizer(500, bos_id=0, eos_id=1, pad_id=2, mask_id=3)
    writer = CorpusWriter(tmp_path, ids, shard_bytes=20_000, bundle_tokens=2_000)
    for number in range(200):
        document = [4 + (number * 7919 + place * 104_729) % 496 for place in range(number % 97)]
        writer.add("train", str(number), document, len(document))
    writer.finish()
    reader = Reader(
        [Corpus.open(tmp_path, "train")],
        ids,
        ReaderOptions(
            sequence_length=LENGTH, seed=11, shuffle=True, global_batch=GLOBAL, micro_batch=GLOBAL, threads=0
        ),
    )
    found = [batch.fingerprint for batch in reader.steps(0, STEPS * GLOBAL)]
    assert hashlib.sha256(repr(found).encode()).hexdigest()[:32] == GOLDEN
