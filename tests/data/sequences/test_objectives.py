import numpy as np
import pytest

from ingot.data.sequences.objectives import IGNORE_INDEX, MaskedLanguageModel, clm, clm_rows

SPECIAL = frozenset({0, 1, 2, 3, 4})


def mlm(probability=0.15, seed=11, vocab_size=1000):
    return MaskedLanguageModel(
        probability=probability, mask_id=4, special_ids=SPECIAL, vocab_size=vocab_size, seed=seed
    )


def random_tokens(rows=64, length=512):
    return np.random.default_rng(0).integers(5, 1000, (rows, length))


def test_clm_shifts_and_ignores_the_end_of_documents():
    tokens = np.array([[2, 7, 8, 3, 2, 9, 3]])
    starts = np.array([[True, False, False, False, True, False, False]])
    input_ids, labels = clm(tokens, starts, eos_id=3)
    assert input_ids.tolist() == [[2, 7, 8, 3, 2, 9]]
    assert labels.tolist() == [[7, 8, 3, IGNORE_INDEX, 9, 3]]


def test_clm_predicts_the_token_that_ends_one_document_and_opens_the_next():
    tokens = np.array([[0, 7, 8, 0, 9, 9, 0]])
    starts = np.array([[True, False, False, True, False, False, True]])
    assert clm(tokens, starts, eos_id=0)[1].tolist() == [[7, 8, 0, 9, 9, 0]]
    assert clm(tokens, starts, eos_id=None)[1].tolist() == [[7, 8, IGNORE_INDEX, 9, 9, IGNORE_INDEX]]


def test_clm_ignores_at_a_document_that_starts_with_the_next_row():
    starts = np.array([[True, False, False, True]])
    assert clm(np.array([[2, 7, 3, 2]]), starts, eos_id=3)[1].tolist() == [[7, 3, IGNORE_INDEX]]


def test_mlm_shares():
    tokens = random_tokens()
    input_ids, labels = mlm()(tokens, np.arange(64))
    chosen = labels != IGNORE_INDEX
    assert (chosen.sum(axis=1) == round(0.15 * 512)).all()
    assert np.array_equal(labels[chosen], tokens[chosen])
    assert np.array_equal(input_ids[~chosen], tokens[~chosen])
    masked = (input_ids[chosen] == 4).mean()
    kept = (input_ids[chosen] == tokens[chosen]).mean()
    assert abs(masked - 0.8) < 0.02
    assert abs(kept - 0.1) < 0.015
    replaced = input_ids[chosen & (input_ids != 4) & (input_ids != tokens)]
    assert abs(len(replaced) / chosen.sum() - 0.1) < 0.015
    assert not SPECIAL & set(replaced.tolist())
    assert len(set(replaced.tolist())) > 300
    per_position = chosen.mean(axis=0)
    assert per_position[:256].mean() == pytest.approx(per_position[256:].mean(), abs=0.02)


def test_mlm_never_touches_specials_and_counts_only_the_rest():
    tokens = random_tokens(8, 100)
    tokens[:, ::2] = np.arange(50) % 5
    input_ids, labels = mlm(0.2)(tokens, np.arange(8))
    special = tokens < 5
    assert (labels[special] == IGNORE_INDEX).all()
    assert np.array_equal(input_ids[special], tokens[special])
    assert ((labels != IGNORE_INDEX).sum(axis=1) == 10).all()


def test_mlm_masks_at_least_one_where_it_can():
    tokens = np.zeros((2, 8), dtype=np.int64)
    tokens[0, 3] = 9
    labels = mlm()(tokens, np.array([0, 1]))[1]
    assert (labels != IGNORE_INDEX).sum(axis=1).tolist() == [1, 0]


def test_mlm_depends_on_seed_and_slot_alone():
    tokens = random_tokens(8)
    slots = np.array([3, 99, 4, 2**40, 7, 8, 12, 5])
    together = np.stack(mlm()(tokens, slots))
    for row in range(8):  # in any company, at any place of the batch
        assert np.array_equal(np.stack(mlm()(tokens[row : row + 1], slots[row : row + 1]))[:, 0], together[:, row])
    same = np.repeat(tokens[:1], 8, axis=0)
    chosen = mlm()(same, slots)[1] != IGNORE_INDEX
    assert len({row.tobytes() for row in chosen}) == 8  # another slot, another mask
    assert not np.array_equal(mlm(seed=12)(tokens, slots)[1], together[1])


def test_mlm_all_positions():
    tokens = random_tokens(2, 16)
    assert (mlm(1.0)(tokens, np.arange(2))[1] == tokens).all()


def test_mlm_errors():
    with pytest.raises(ValueError, match="mlm_probability"):
        mlm(0.0)
    with pytest.raises(ValueError, match="no mask token"):
        MaskedLanguageModel(probability=0.1, mask_id=None, special_ids=SPECIAL, vocab_size=10, seed=0)


def test_clm_of_rows_that_best_fit_has_packed():
    tokens = np.array([[2, 7, 8, 3, 2, 9, 3, 0, 0], [2, 5, 6, 2, 2, 3, 4, 5, 6]])
    starts = np.zeros((2, 9), dtype=bool)
    starts[0, [0, 4, 7]] = starts[1, [0, 4]] = True
    input_ids, labels = clm_rows(tokens, starts, np.array([7, 9]))
    no = IGNORE_INDEX
    assert np.array_equal(input_ids, tokens)
    assert labels.tolist() == [[7, 8, 3, no, 9, 3, no, no, no], [5, 6, 2, no, 3, 4, 5, 6, no]]
