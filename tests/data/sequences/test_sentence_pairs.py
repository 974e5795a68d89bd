import hashlib

import numpy as np
import pytest

from ingot.data.sequences.objectives import IGNORE_INDEX, MaskedLanguageModel
from ingot.data.sequences.sentence_pairs import IGNORE_PAIR, SentencePairs
from ingot.data.sequences.sentences import SentenceMarks

PAD, CLS, SEP, MASK, L, VOCAB = 0, 1, 2, 3, 64, 5000


def pairs(kind="nsp", **changes):
    settings = dict(
        kind=kind,
        sequence_length=L,
        cls_id=CLS,
        sep_id=SEP,
        pad_id=PAD,
        special_ids=frozenset({PAD, CLS, SEP, MASK}),
        vocab_size=VOCAB,
        seed=9,
        partner_slots=1000,
    )
    return SentencePairs(**{**settings, **changes})


def instance(*documents, length=L):
    """Documents of consecutive numbers, (first, number) each, between CLS and SEP; cut or padded to the length."""
    tokens, starts = [], []
    for first, number in documents:
        starts.append(len(tokens))
        tokens += [CLS, *range(first, first + number), SEP]
    begins = np.zeros(length, dtype=bool)
    begins[[s for s in starts if s < length]] = True
    return np.array((tokens + [PAD] * length)[:length]), begins


A, B = instance((1000, 25), (2000, 60)), instance((3000, 100))


def split(input_ids, token_types):
    """(A, B) of a row, its form checked."""
    first, second = np.flatnonzero(input_ids == SEP)
    assert input_ids[0] == CLS
    assert (input_ids[second + 1 :] == PAD).all()
    types = np.zeros(L, dtype=int)
    types[first + 1 : second + 1] = 1
    assert np.array_equal(token_types, types)
    return input_ids[1:first], input_ids[first + 1 : second]


@pytest.mark.parametrize(("kind", "golden"), [("nsp", "1993387e32d5b882"), ("sop", "2ae55a156c3c1a9e")])
def test_golden_pairs(kind, golden):
    maker, digest = pairs(kind), hashlib.sha256()
    for slot in range(200):
        input_ids, token_types, label, starts = maker.build_pair(*A, *B, slot)
        for array in (input_ids, token_types, starts, np.array([label, maker.partner(slot)])):
            digest.update(array.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == golden


def test_next_sentence():
    maker, labels, first_lengths = pairs(), [], {0: [], 1: []}
    documents = set()
    for slot in range(2000):
        input_ids, token_types, label, starts = maker.build_pair(*A, *B, slot)
        a, b = split(input_ids, token_types)
        assert min(len(a), len(b)) >= 1
        assert (np.diff(a) == 1).all()
        assert (np.diff(b) == 1).all()
        assert a[0] in (1000, 2000)
        if label == 0:
            assert b[0] == a[-1] + 1
            assert maker.partner(slot) == slot
        else:
            assert 3000 <= b[0] <= b[-1] < 3100
            assert maker.partner(slot) != slot
        assert np.flatnonzero(starts).tolist() == [0, len(a) + len(b) + 3]
        labels.append(label)
        first_lengths[label].append(len(b))
        documents.add(int(a[0]))
    assert np.mean(labels) == pytest.approx(0.5, abs=0.03)
    assert documents == {1000, 2000}
    assert np.mean(first_lengths[0]) == pytest.approx(np.mean(first_lengths[1]), rel=0.06)


def test_sentence_order():
    maker, labels = pairs("sop"), []
    for slot in range(500):
        assert maker.partner(slot) == slot
        input_ids, token_types, label, _ = maker.build_pair(*A, *A, slot)
        a, b = split(input_ids, token_types)
        front, back = (b, a) if label else (a, b)
        assert back[0] == front[-1] + 1
        assert np.array_equal(np.append(front, back), np.arange(front[0], back[-1] + 1))
        labels.append(label)
    assert np.mean(labels) == pytest.approx(0.5, abs=0.07)


def test_full_rows():
    row = instance((1000, 100))
    for kind in ("nsp", "sop"):
        for slot in range(50):
            input_ids, token_types, _, starts = pairs(kind).build_pair(*row, *B, slot)
            assert len(input_ids) == len(token_types) == len(starts) == L
            a, b = split(input_ids, token_types)
            assert len(a) + len(b) == L - 3
            assert np.flatnonzero(starts).tolist() == [0]


def test_partners():
    maker = pairs(partner_slots=100)
    slots = np.arange(50_000)
    found = np.array([maker.partner(int(slot)) for slot in slots[:3000]])
    assert (found // 100 == slots[:3000] // 100).all()
    other = found != slots[:3000]
    assert other.mean() == pytest.approx(0.5, abs=0.03)
    distance = (found - slots[:3000])[other] % 100
    assert len(np.unique(distance)) == 99
    assert all(pairs(partner_slots=1).partner(slot) == slot for slot in range(20))
    for slot in range(100):
        again = [maker.partner(slot, attempt) for attempt in range(8)]
        assert len({n == slot for n in again}) == 1
        assert again[0] == slot or len(set(again)) > 3


def test_without_a_partner_another_document_of_the_row_is_taken():
    labels = []
    for slot in range(300):
        maker = pairs(partner_slots=1)
        input_ids, token_types, label, _ = maker.build_pair(*A, *A, slot)
        a, b = split(input_ids, token_types)
        labels.append(label)
        assert (a[0] // 1000 == b[0] // 1000) == (label == 0)
        assert maker.build_pair(*instance((1000, 30)), *B, slot)[2] == 0  # there is no other: B follows A
    assert 0.4 < np.mean(labels) < 0.6


def test_text_that_is_too_short():
    for documents in ((), ((1000, 1),), ((1000, 1), (2000, 1))):
        for slot in range(6):
            input_ids, token_types, label, starts = pairs().build_pair(*instance(*documents), *B, slot)
            a, b = split(input_ids, token_types)
            assert label == IGNORE_PAIR
            assert len(a) <= 1
            assert len(b) == 0
            assert np.flatnonzero(starts).tolist() == [0, len(a) + 3]
    empty = instance()
    for slot in range(10):  # nothing in the partner: B follows A
        assert pairs().build_pair(*A, *empty, slot)[2] == 0


def marks(is_word_start, is_end=None):
    none = np.zeros(VOCAB, dtype=bool)
    return SentenceMarks(is_word_start, none if is_end is None else is_end, none)


def test_segments_begin_with_words():
    is_word_start = np.arange(VOCAB) % 5 == 0
    for kind in ("nsp", "sop"):
        maker = pairs(kind, marks=marks(is_word_start))
        for slot in range(200):
            a, b = split(*maker.build_pair(*A, *B, slot)[:2])
            assert is_word_start[b[0]]
            assert is_word_start[a[0]]
    none = pairs("sop", marks=marks(np.zeros(VOCAB, dtype=bool)))
    assert none.build_pair(*A, *B, 0)[2] in (0, 1)  # cut at any token then


@pytest.mark.parametrize("kind", ["nsp", "sop"])
def test_segments_are_whole_sentences_where_there_are_any(kind):
    number = np.arange(VOCAB)
    maker = pairs(kind, marks=marks(number % 5 == 0, number % 10 == 9))  # sentences of two words of five tokens
    cuts, labels = set(), []
    for slot in range(300):
        input_ids, token_types, label, _ = maker.build_pair(*A, *B, slot)
        a, b = split(input_ids, token_types)
        assert b[0] % 10 == 0
        front = b if kind == "sop" and label else a
        assert front[-1] % 10 == 9
        cuts.add(int(front[-1]))
        labels.append(label)
    assert cuts == {1009, 1019, 2009, 2019, 2029}
    assert 0.4 < np.mean(labels) < 0.6


def test_another_documents_segment_begins_as_the_one_it_stands_in_for():
    """With a word where A and B have no sentences, even if the other document has some."""
    number = np.arange(VOCAB)
    maker = pairs(marks=marks(number % 5 == 0, (number % 10 == 9) & (number >= 3000)))
    begins = [
        int(b[0])
        for slot in range(400)
        for row in [maker.build_pair(*A, *B, slot)]
        for _, b in [split(*row[:2])]
        if row[2] == 1
    ]
    assert {n % 10 for n in begins} == {0, 5}


def test_masks_on_pairs_leave_the_frame_alone():
    maker = pairs()
    mlm = MaskedLanguageModel(
        probability=0.15, mask_id=MASK, special_ids=frozenset({PAD, CLS, SEP, MASK}), vocab_size=VOCAB, seed=9
    )
    rows = [maker.build_pair(*A, *B, slot) for slot in range(20)]
    tokens = np.stack([row[0] for row in rows])
    input_ids, labels = mlm(tokens, np.arange(20), np.stack([row[3] for row in rows]))
    frame = tokens <= SEP
    assert (labels[frame] == IGNORE_INDEX).all()
    assert np.array_equal(input_ids[frame], tokens[frame])
    assert ((labels != IGNORE_INDEX).sum(axis=1) == np.floor(0.15 * (~frame).sum(axis=1) + 0.5)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(kind="next"), "choose nsp or sop"),
        (dict(cls_id=None, pad_id=None), "no CLS, PAD"),
        (dict(sequence_length=4), "at least 5"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        pairs(**changes)
