"""Every way of making sequences, through the Reader: one order for any layout, and what each way promises."""

import numpy as np
import pytest

from ingot.data.corpus.shards import Corpus
from ingot.data.loader.reader import Reader, ReaderOptions
from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.tokenizers.training import train_sentencepiece

LENGTH, GLOBAL, STEPS = 48, 8, 12

MODES = {
    "window": {"shuffle": "window", "window_shards": 2},
    "partitions": {"shuffle": "window", "window_shards": 1, "num_partitions": 4},
    "mixture schedule": {"weights": None, "mixture_schedule": [(0, [1, 0]), (40, [1, 3])]},
    "best fit": {"packing": "best_fit"},
    "best fit, mlm": {"packing": "best_fit", "objective": "mlm"},
    "words": {"objective": "mlm", "mask_unit": "word"},
    "spans": {"objective": "mlm", "mask_unit": "span"},
    "next sentence": {"objective": "mlm", "sentence_pairs": "nsp"},
    "sentence order": {"objective": "mlm", "sentence_pairs": "sop", "mask_unit": "word"},
    "fill in the middle": {"fim_rate": 0.5},
    "fill in the middle, best fit": {"fim_rate": 0.5, "packing": "best_fit"},
    "one document": {"intra_document_masking": False},
    "one document, best fit": {"intra_document_masking": False, "packing": "best_fit"},
    "one document, words": {"intra_document_masking": False, "objective": "mlm", "mask_unit": "word"},
}


@pytest.fixture(scope="module")
def fim_tokenizer(tmp_path_factory, texts):
    return train_sentencepiece(texts, tmp_path_factory.mktemp("fim"), 343, fill_in_the_middle=True)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, fim_tokenizer, texts, write_corpus):
    folder = tmp_path_factory.mktemp("modes")
    folders = [write_corpus(folder / "a", fim_tokenizer, texts), write_corpus(folder / "b", fim_tokenizer, texts[::3])]
    return [Corpus.open(each, "train") for each in folders]


@pytest.fixture
def reader(corpora, fim_tokenizer):
    def make(mode: str, rank: int = 0, num_ranks: int = 1, micro_batch: int = 1, threads: int = 0) -> Reader:
        fixed = {"sequence_length": LENGTH, "seed": 11, "global_batch": GLOBAL}
        settings = {"weights": [2, 1], "shuffle": "full", **MODES[mode]}
        options = ReaderOptions(micro_batch=micro_batch, threads=threads, **fixed, **settings)
        return Reader(corpora, fim_tokenizer, options, rank=rank, num_ranks=num_ranks)

    return make


def fingerprints(make, mode, num_ranks=1, cursor=0, **more) -> list[int]:
    streams = [make(mode, rank, num_ranks, **more).steps(cursor, STEPS * GLOBAL) for rank in range(num_ranks)]
    return [sum(batch.fingerprint for batch in step) % 2**64 for step in zip(*streams, strict=True)]


def rows(make, mode) -> list[dict]:
    return [micro for batch in make(mode, micro_batch=4).steps(0, STEPS * GLOBAL) for micro in batch.micro_batches]


@pytest.mark.parametrize("mode", MODES)
def test_one_order_for_any_ranks_accumulation_threads_and_restart(reader, mode):
    expected = fingerprints(reader, mode)
    assert len(set(expected)) == STEPS
    assert fingerprints(reader, mode, num_ranks=2, micro_batch=4) == expected
    assert fingerprints(reader, mode, num_ranks=4, micro_batch=2, threads=2) == expected
    for step in (1, 5, STEPS - 1):
        assert fingerprints(reader, mode, num_ranks=2, cursor=step * GLOBAL) == expected[step:]


@pytest.mark.parametrize("mode", MODES)
def test_shapes_and_boundaries(reader, mode):
    for micro in rows(reader, mode):
        for name in ("input_ids", "labels", "positions"):
            assert micro[name].shape == (4, LENGTH)
            assert micro[name].dtype == np.int64
        ends = micro["cu_seqlens"]
        assert ends[0] == 0
        assert ends[-1] == 4 * LENGTH
        assert set(range(0, 4 * LENGTH, LENGTH)) <= set(ends.tolist())
        assert np.array_equal(np.flatnonzero(micro["positions"].ravel() == 0), ends[:-1])


@pytest.mark.parametrize("mode", ["best fit", "best fit, mlm", "fill in the middle, best fit", "next sentence"])
def test_padding_is_no_target_and_a_segment_of_its_own(reader, fim_tokenizer, mode):
    padded = 0
    for micro in rows(reader, mode):
        padding = micro["input_ids"] == fim_tokenizer.pad_id
        padded += int(padding.sum())
        assert (micro["labels"][padding] == IGNORE_INDEX).all()
        for row, column in np.argwhere(padding):
            if column and not padding[row, column - 1]:
                assert micro["positions"][row, column] == 0
    assert padded


def test_a_corpus_without_weight_comes_in_only_when_it_has_one(reader):
    order = reader("mixture schedule").order
    corpus, _, _ = order.locate(np.arange(80))
    assert set(corpus[:40]) == {0}
    assert np.count_nonzero(corpus[40:]) == 30


def test_a_rank_of_as_many_as_partitions_reads_a_part_of_the_shards_only(reader):
    total = len(set(reader("partitions").shards_of(0, None, GLOBAL)))
    mine = [set(reader("partitions", rank, 4).shards_of(0, None, GLOBAL)) for rank in range(4)]
    assert max(len(each) for each in mine) < total


def test_pairs_carry_types_and_labels(reader, fim_tokenizer):
    labels = []
    for micro in rows(reader, "next sentence"):
        assert (micro["input_ids"][:, 0] == fim_tokenizer.bos_id).all()
        assert set(np.unique(micro["token_types"])) <= {0, 1}
        assert micro["pair_labels"].shape == (4,)
        labels += micro["pair_labels"].tolist()
    assert set(labels) >= {0, 1}


def test_fill_in_the_middle_shows_its_tokens(reader, fim_tokenizer):
    ids = np.concatenate([micro["input_ids"].ravel() for micro in rows(reader, "fill in the middle")])
    for piece in ("<fim_prefix>", "<fim_middle>", "<fim_suffix>"):
        assert np.count_nonzero(ids == fim_tokenizer.find(piece)) > 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"packing": "tight"}, "packing 'tight' is unknown: choose one of concatenate, best_fit"),
        ({"objective": "clm", "sentence_pairs": "nsp"}, "sentence_pairs nsp need objective mlm"),
        ({"objective": "mlm", "fim_rate": 0.5}, "fim_rate 0.5 needs objective clm: set fim_rate to 0"),
        ({"objective": "rtd"}, "objective 'rtd' is unknown: choose one of clm, mlm"),
    ],
)
def test_what_does_not_go_together_is_refused(corpora, fim_tokenizer, settings, message):
    fixed = {"sequence_length": LENGTH, "seed": 1, "shuffle": True, "global_batch": 8, "micro_batch": 1}
    with pytest.raises(ValueError, match=message):
        Reader(corpora, fim_tokenizer, ReaderOptions(weights=[1, 1], **fixed, **settings))


@pytest.mark.parametrize("mode", ["window", "best fit", "words"])
def test_without_intra_document_masking_each_row_is_one_document(reader, fim_tokenizer, mode, monkeypatch):
    """The same rows and masks, and what a corpus gives whose documents begin where its rows begin."""
    settings = {**MODES[mode], "intra_document_masking": False}
    monkeypatch.setitem(MODES, "one", settings)
    together, apart = rows(reader, "one"), rows(reader, mode)
    assert any(len(micro["cu_seqlens"]) > len(micro["input_ids"]) + 1 for micro in apart)
    more = 0
    for one, several in zip(together, apart, strict=True):
        np.testing.assert_array_equal(one["input_ids"], several["input_ids"])
        padding = (
            (one["input_ids"] == fim_tokenizer.pad_id) if mode == "best fit" else np.zeros_like(one["labels"], bool)
        )
        starts = np.zeros(one["labels"].size, dtype=bool)
        starts[one["cu_seqlens"][:-1]] = True
        expected = np.zeros_like(padding)
        expected[:, 0] = True
        expected[:, 1:] |= padding[:, 1:] & ~padding[:, :-1]
        np.testing.assert_array_equal(starts.reshape(padding.shape), expected)
        positions = np.where(padding, 0, one["positions"])
        np.testing.assert_array_equal(positions, np.where(padding, 0, np.arange(LENGTH)))
        if mode == "words":
            np.testing.assert_array_equal(one["labels"], several["labels"])
        else:  # every next token of the row is a target
            inside = ~padding[:, :-1] & ~padding[:, 1:]
            np.testing.assert_array_equal(one["labels"][:, :-1][inside], one["input_ids"][:, 1:][inside])
            more += (one["labels"] != IGNORE_INDEX).sum() - (several["labels"] != IGNORE_INDEX).sum()
    assert (more > 0) == (mode != "words")


def test_sentence_pairs_are_one_document_already(reader, monkeypatch):
    monkeypatch.setitem(MODES, "pairs", {**MODES["next sentence"], "intra_document_masking": False})
    with pytest.raises(ValueError, match="sentence_pairs nsp makes one document of each row"):
        reader("pairs")
