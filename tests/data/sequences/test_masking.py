import hashlib

import numpy as np
import pytest

from ingot.data.sequences.masking import (
    MAX_SPAN,
    MAX_WORD,
    choose_spans,
    choose_words,
    row_word_starts,
    span_lengths,
    word_starts,
)
from ingot.data.sequences.objectives import IGNORE_INDEX, MaskedLanguageModel

SPECIAL = frozenset({0, 1, 2, 3, 4})
VOCAB = 1000
IS_WORD_START = np.arange(VOCAB) % 3 != 0  # a third of the pieces go on with a word


def mlm(unit, probability=0.15, seed=11):
    return MaskedLanguageModel(
        probability=probability,
        mask_id=4,
        special_ids=SPECIAL,
        vocab_size=VOCAB,
        seed=seed,
        unit=unit,
        is_word_start=IS_WORD_START,
    )


def rows(number=64, length=512):
    """Tokens with a special token (3, 2) at each document's end and begin, and where documents begin."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(5, VOCAB, (number, length))
    starts = draw.random((number, length)) < 0.01
    starts[:, 0] = False
    tokens[starts] = 2
    return tokens, starts


def units(tokens, starts):
    """Number of the word of each token, -1 for special ones, by the plain definition."""
    number, current, within, result = -1, True, 0, []
    for token, start in zip(tokens.tolist(), starts.tolist(), strict=True):
        if token in SPECIAL:
            result.append(-1)
            current = True
            continue
        if current or start or IS_WORD_START[token] or within == MAX_WORD:
            number += 1
            within = 0
        result.append(number)
        current, within = False, within + 1
    return np.array(result)


@pytest.mark.parametrize(
    ("unit", "golden"), [("token", "d5faa272e87871fa"), ("word", "edab1756dbf9548d"), ("span", "31b320338dcb5527")]
)
def test_golden_masks(unit, golden):
    tokens = (np.arange(8 * 256) * 7919 % 991 + 5).reshape(8, 256)
    starts = np.zeros((8, 256), dtype=bool)
    starts[:, ::50] = True
    content = np.stack(mlm(unit)(tokens, np.arange(8) * 1000, starts)).astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == golden


def test_word_starts_of_each_kind():
    wordpiece = ["[CLS]", "the", "##ing", "##", "a"]
    assert word_starts(wordpiece).tolist() == [True, True, False, False, True]
    sentencepiece = ["<s>", "\u2581the", "ing", "\u2581", "\n", "<0xE4>", "\u4f60\u597d", "."]
    assert word_starts(sentencepiece).tolist() == [False, True, False, True, True, False, True, False]
    # The last is Han in UTF-8, byte by byte in GPT-2's alphabet; the one before only its first byte.
    bytelevel = ["\u0120the", "ing", "\u010a", "\u0109", "!", "\u00e4", "\u00e4\u00bd\u0142"]
    assert word_starts(bytelevel).tolist() == [True, False, True, True, False, False, True]
    assert word_starts(["##a", "b"], "sentencepiece").tolist() == [False, False]


def test_word_starts_of_unknown_vocabularies():
    with pytest.raises(ValueError, match="no piece of the vocabulary"):
        word_starts(["a", "b"])
    with pytest.raises(ValueError, match="choose one of wordpiece"):
        word_starts(["a"], "morphemes")


def test_word_starts_of_real_tokenizers(tokenizer, gpt2_like):
    from transformers import AutoTokenizer

    pieces = [tokenizer._model.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    ids = np.array(tokenizer.encode("the index of token reader"))
    begins = row_word_starts(ids, np.ones(len(ids), bool), np.zeros(len(ids), bool), word_starts(pieces))
    assert begins.sum() == 5
    other = AutoTokenizer.from_pretrained(gpt2_like)
    pieces = other.convert_ids_to_tokens(list(range(len(other))))
    ids = np.array(other("the index of token reader")["input_ids"])
    assert row_word_starts(ids, np.ones(len(ids), bool), np.zeros(len(ids), bool), word_starts(pieces)).sum() == 5


def test_words_end_at_documents_specials_and_after_sixteen_tokens():
    on = np.zeros(10, dtype=bool)  # no piece begins a word
    tokens = np.array([5, 6, 2, 7, 8, 9] + [5] * 20)
    starts = np.zeros(26, dtype=bool)
    starts[4] = True
    assert np.flatnonzero(row_word_starts(tokens, tokens != 2, starts, on)).tolist() == [0, 3, 4, 20]


def test_words_as_defined():
    tokens, starts = rows()
    for row in range(len(tokens)):
        begins = row_word_starts(tokens[row], tokens[row] > 4, starts[row], IS_WORD_START)
        number = np.where(tokens[row] > 4, np.cumsum(begins) - 1, -1)
        assert np.array_equal(number, units(tokens[row], starts[row]))


def test_whole_words_are_chosen_and_treated_alike():
    tokens, starts = rows()
    input_ids, labels = mlm("word")(tokens, np.arange(64), starts)
    chosen = labels != IGNORE_INDEX
    assert np.array_equal(labels[chosen], tokens[chosen])
    assert np.array_equal(input_ids[~chosen], tokens[~chosen])
    masked_words = total = 0
    for row in range(64):
        number = units(tokens[row], starts[row])
        assert not chosen[row][number < 0].any()
        picked = np.unique(number[chosen[row]])
        assert np.isin(number, picked)[number >= 0].sum() == chosen[row].sum()  # whole words only
        budget = round(0.15 * (number >= 0).sum())
        longest = np.bincount(number[number >= 0]).max()
        assert abs(int(chosen[row].sum()) - budget) <= longest / 2
        for word in picked:
            masked = input_ids[row][number == word] == 4
            assert masked.all() or not masked.any()
            masked_words += masked.all()
            total += 1
    assert masked_words / total == pytest.approx(0.8, abs=0.02)
    kept = (input_ids[chosen] == tokens[chosen]).mean()
    assert kept == pytest.approx(0.1, abs=0.03)
    assert not SPECIAL - {4} & set(input_ids[chosen].tolist())
    assert chosen.mean() == pytest.approx(0.15, abs=0.003)


def test_spans():
    tokens, starts = rows(256, 512)
    labels = mlm("span")(tokens, np.arange(256), starts)[1]
    chosen = labels != IGNORE_INDEX
    assert chosen[tokens > 4].mean() == pytest.approx(0.15, abs=0.003)
    lengths = []
    for row in range(256):
        number = units(tokens[row], starts[row])
        picked = np.unique(number[chosen[row]])
        assert np.isin(number, picked)[number >= 0].sum() == chosen[row].sum()
        assert abs(int(chosen[row].sum()) - round(0.15 * (number >= 0).sum())) <= 8
        groups = np.split(picked, np.flatnonzero(np.diff(picked) != 1) + 1)
        lengths += [len(group) for group in groups]
    # Runs of chosen words are mostly single spans; SpanBERT's mean length is 3.8.
    assert 3.0 < np.mean(lengths) < 4.8
    assert max(lengths) > 6


def test_a_span_shares_one_of_80_10_10_and_stays_in_its_document():
    tokens = np.full((400, 60), 7)  # each token a word of its own, and a budget of 3
    starts = np.zeros((400, 60), dtype=bool)
    starts[:, 30] = True
    input_ids, labels = mlm("span", probability=0.05)(tokens, np.arange(400), starts)
    shares, across = [], 0
    for row in range(400):
        chosen = np.flatnonzero(labels[row] != IGNORE_INDEX)
        assert len(chosen) == 3
        across += chosen[0] < 30 <= chosen[-1] == chosen[0] + 2
        if chosen[-1] == chosen[0] + 2:  # almost always one span
            shares.append((input_ids[row, chosen] == 4).mean())
    assert len(shares) > 150
    assert across <= 1  # only where two spans happen to touch
    assert np.isin(shares, [0, 1]).mean() > 0.9  # 51% if each token drew for itself
    assert np.mean(shares) == pytest.approx(0.8, abs=0.06)


def test_span_lengths_are_geometric():
    lengths = np.concatenate([span_lengths(3, slot, np.arange(500)) for slot in range(40)])
    shares = np.bincount(lengths, minlength=MAX_SPAN + 1)[1:] / len(lengths)
    expected = 0.8 ** np.arange(10) / (0.8 ** np.arange(10)).sum()
    assert np.abs(shares - expected).max() < 0.01
    assert lengths.mean() == pytest.approx(3.797, abs=0.06)


def test_choose_words_comes_nearest_to_the_budget():
    score, length = np.array([3, 1, 2, 0]), np.array([1, 5, 2, 4])
    assert choose_words(score, length, 4).tolist() == [3]
    assert choose_words(score, length, 6).tolist() == [3]  # 4 is nearer than 9
    assert choose_words(score, length, 7).tolist() == [3, 1]
    assert choose_words(score, length, 1).tolist() == [3]
    assert sorted(choose_words(score, length, 12).tolist()) == [0, 1, 2, 3]


def test_choose_spans_by_hand():
    ones, joined = np.ones(6, dtype=int), np.array([0, 1, 1, 0, 1, 1], dtype=bool)
    score = np.array([5, 0, 1, 2, 3, 4])
    assert choose_spans(score, ones, joined, np.full(6, 9), 2) == [(1, 3)]
    # 2 is taken; 3 begins a span up to the end, as it does not continue 2.
    assert choose_spans(score, ones, joined, np.full(6, 9), 4) == [(1, 3), (3, 5)]
    assert choose_spans(score, ones, joined, np.full(6, 1), 3) == [(1, 2), (2, 3), (3, 4)]
    # The span from 0 stops in front of the one that is there.
    assert choose_spans(np.array([1, 0, 2]), ones[:3], np.ones(3, bool), np.full(3, 2), 3) == [(1, 3), (0, 1)]
    assert choose_spans(np.array([0, 1]), np.array([2, 9]), np.ones(2, bool), np.full(2, 5), 4) == [(0, 1)]


@pytest.mark.parametrize("unit", ["word", "span"])
def test_everything_can_be_chosen_and_rows_do_not_depend_on_company(unit):
    tokens, starts = rows(8, 64)
    tokens[7] = 2  # nothing to choose
    labels = mlm(unit, probability=1.0)(tokens, np.arange(8), starts)[1]
    assert np.array_equal(labels != IGNORE_INDEX, tokens > 4)
    slots = np.array([3, 99, 4, 2**40, 7, 8, 12, 5])
    together = np.stack(mlm(unit)(tokens, slots, starts))
    for row in range(8):
        alone = np.stack(mlm(unit)(tokens[row : row + 1], slots[row : row + 1], starts[row : row + 1]))
        assert np.array_equal(alone[:, 0], together[:, row])
    same = np.repeat(tokens[:1], 7, axis=0)
    assert len({row.tobytes() for row in mlm(unit)(same, slots[:7])[1]}) == 7
    assert not np.array_equal(mlm(unit, seed=12)(tokens, slots, starts)[1], together[1])


def test_unknown_unit():
    with pytest.raises(ValueError, match="token, word, span"):
        mlm("sentence")
