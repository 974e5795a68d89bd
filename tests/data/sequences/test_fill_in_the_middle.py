import hashlib

import numpy as np
import pytest

from ingot.data.sequences.fill_in_the_middle import FillInTheMiddle
from ingot.data.sequences.objectives import IGNORE_INDEX, clm

PREFIX, MIDDLE, SUFFIX, BOS, EOS = 90, 91, 92, 1, 2


def fim(seed=5, **changes):
    ids = dict(prefix_id=PREFIX, middle_id=MIDDLE, suffix_id=SUFFIX, bos_id=BOS, eos_id=EOS)
    return FillInTheMiddle(**{**ids, "seed": seed, **changes})


def row(*lengths, length, pad=0, opens=True):
    """A row of documents BOS ... EOS of so many tokens; the rest is padding, a segment of its own."""
    tokens, starts = np.full(length, pad), np.zeros(length, dtype=bool)
    place = 0
    for n in lengths:
        tokens[place : place + n] = [BOS, *range(10, 8 + n), EOS]
        starts[place] = True
        place += n
    if place < length:
        starts[place] = True
    starts[0] = opens
    return tokens[None], starts[None]


def undo(document):
    """(plain document, kind) of one that begins with BOS and ends with EOS."""
    body = document[1:-1]
    if PREFIX not in body:
        return document, "plain"
    suffix, middle = body.index(SUFFIX), body.index(MIDDLE)
    assert body[0] == PREFIX
    if suffix == 1:  # also PSM with an empty prefix, which reads the same
        return [BOS, *body[middle + 1 :], *body[2:middle], EOS], "spm"
    return [BOS, *body[1:suffix], *body[middle + 1 :], *body[suffix + 1 : middle], EOS], "psm"


def test_golden_infilling():
    tokens, starts = row(*[30] * 40, length=1300)
    tokens, starts, _ = fim()(np.repeat(tokens, 4, 0), np.repeat(starts, 4, 0), np.arange(4) * 77)
    content = tokens.astype("<i8").tobytes() + starts.tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "1fff0a416c18ba55"


def test_each_document_is_rearranged_or_left_alone():
    """What cannot be told apart, an empty prefix, is read as SPM: then the pieces come back rotated."""
    kinds = {"plain": 0, "psm": 0, "spm": 0}
    plain = [BOS, *range(10, 48), EOS]
    cuts = []
    for slot in range(60):
        tokens, starts = row(*[40] * 30, length=1300)
        new, begins, lengths = fim()(tokens, starts, np.array([slot]), np.array([1200]))
        documents = np.split(new[0, : lengths[0]], np.flatnonzero(begins[0, : lengths[0]])[1:])
        assert len(documents) == 30
        for document in documents:
            restored, kind = undo(document.tolist())
            kinds[kind] += 1
            if kind == "plain":
                assert restored == plain
            elif kind == "psm":
                assert restored == plain
                cuts.append(document.tolist().index(SUFFIX) - 2)
            else:
                assert sorted(restored) == sorted(plain)
    assert kinds["plain"] / 1800 == pytest.approx(0.5, abs=0.04)
    assert kinds["spm"] / (kinds["spm"] + kinds["psm"]) == pytest.approx(0.5, abs=0.06)
    assert np.mean(cuts) == pytest.approx(38 / 3, abs=1.5)  # the first of two uniform cuts


@pytest.mark.parametrize("spm_rate", [0, 1])
def test_psm_and_spm(spm_rate):
    tokens, starts = row(8, length=11)  # with room for the three tokens
    for slot in range(20):
        new = fim(rate=1, spm_rate=spm_rate)(tokens, starts, np.array([slot]), np.array([8]))[0][0].tolist()
        assert (new[0], new[1], new[-1]) == (BOS, PREFIX, EOS)
        suffix, middle = new.index(SUFFIX), new.index(MIDDLE)
        assert suffix < middle
        if spm_rate:  # prefix and middle come together at the end
            assert suffix == 2
            assert new[middle + 1 : -1] + new[3:middle] == [*range(10, 16)]
        else:
            assert new[2:suffix] + new[middle + 1 : -1] + new[suffix + 1 : middle] == [*range(10, 16)]


def test_rows_keep_their_length_and_boundaries():
    tokens, starts = row(20, 20, 20, 5, length=65)
    new, begins, lengths = fim(rate=1)(tokens, starts, np.array([3]))
    assert new.shape == tokens.shape
    assert lengths.tolist() == [65]
    assert np.flatnonzero(begins[0]).tolist() == [0, 23, 46]  # the fourth document is pushed out
    assert (new[0, [0, 23, 46]] == BOS).all()
    assert (new[0, [22, 45]] == EOS).all()
    labels = clm(new, begins, EOS)[1]
    assert (labels[0, [22, 45]] == IGNORE_INDEX).all()
    assert np.count_nonzero(labels == IGNORE_INDEX) == 2


def test_padding_makes_room_first():
    tokens, starts = row(20, 20, length=50)
    new, begins, lengths = fim(rate=1)(tokens, starts, np.array([3]), np.array([40]))
    assert lengths.tolist() == [46]
    assert np.flatnonzero(begins[0]).tolist() == [0, 23, 46]
    assert (new[0, 46:] == 0).all()
    new, begins, lengths = fim(rate=1)(*row(20, 27, length=50), np.array([3]), np.array([47]))
    assert lengths.tolist() == [50]
    assert np.flatnonzero(begins[0]).tolist() == [0, 23]


def test_a_document_without_begin_is_rearranged_from_the_row_on():
    tokens, starts = row(20, length=20, opens=False)
    new, begins, _ = fim(rate=1)(tokens[:, 1:], starts[:, 1:], np.array([0]))
    assert new[0, 0] == PREFIX
    assert not begins.any()


def test_short_documents_and_rate_zero_change_nothing():
    tokens, starts = row(2, 3, 2, 3, length=10)
    for objective in (fim(rate=1), fim(rate=0)):
        new, begins, _ = objective(tokens, starts, np.array([0]))
        assert np.array_equal(new, tokens)
        assert np.array_equal(begins, starts)


def test_rows_do_not_depend_on_company():
    tokens, starts = row(*[30] * 10, length=300)
    tokens, starts, slots = np.repeat(tokens, 6, 0), np.repeat(starts, 6, 0), np.array([5, 2**40, 7, 1, 0, 3])
    together = fim()(tokens, starts, slots)
    for n in range(6):
        alone = fim()(tokens[n : n + 1], starts[n : n + 1], slots[n : n + 1])
        assert all(np.array_equal(a[0], b[n]) for a, b in zip(alone, together, strict=True))
    assert len({row.tobytes() for row in together[0]}) == 6
    assert not np.array_equal(fim(seed=6)(tokens, starts, slots)[0], together[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [(dict(rate=1.5), "fim_rate"), (dict(spm_rate=-1), "fim_spm_rate"), (dict(middle_id=None), "lacks <fim_prefix>")],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        fim(**changes)
