"""Batches of task examples: each once an epoch, in an order that ranks and rows do not change, without padding."""

from itertools import pairwise

import numpy as np
import pytest

from ingot.data.tasks.examples import Example, insert_virtual_tokens, pack
from ingot.data.tasks.reader import TaskReader, balance_rows

draw = np.random.default_rng(0)
EXAMPLES = [
    Example(ids, np.zeros_like(ids), np.array(number % 3), 1, number, (len(ids),))
    for number, ids in enumerate(draw.integers(5, 99, length) for length in draw.integers(1, 30, 50))
]


def reader(rank: int = 0, num_ranks: int = 1, **options) -> TaskReader:
    options = {"global_size": 8, "micro_tokens": 64, "labels": "targets", "seed": 3, **options}
    return TaskReader(EXAMPLES, rank=rank, num_ranks=num_ranks, **options)


def documents(micro: dict) -> list[tuple[list[int], int]]:
    ids, bounds = micro["input_ids"][0], micro["cu_seqlens"]
    assert micro["positions"][0].tolist() == [n for a, b in pairwise(bounds) for n in range(b - a)]
    return [
        (ids[a:b].tolist(), int(target)) for a, b, target in zip(bounds, bounds[1:], micro["targets"], strict=False)
    ]


def seen(readers: list[TaskReader], steps: int) -> list[list]:
    """For each step what all ranks compute a loss of, sorted."""
    found = []
    for batches in zip(*(each.steps(0, stop=8 * steps) for each in readers), strict=True):
        rows = [document for batch in batches for micro in batch.micro_batches for document in documents(micro)]
        found.append(sorted(document for document in rows if document[1] != -100))
        assert len({len(batch.micro_batches) for batch in batches}) == 1
        assert sum(batch.num_targets for batch in batches) == 8
    return found


def test_an_epoch_has_each_example_once_and_the_next_another_order():
    order = reader().order(np.arange(150))
    assert sorted(order[:50]) == sorted(order[50:100]) == list(range(50))
    assert (order[:50] != order[50:100]).any()
    assert (reader(seed=4).order(np.arange(50)) != order[:50]).any()
    assert (reader(shuffle=False).order(np.arange(60)) == np.arange(60) % 50).all()


@pytest.mark.parametrize(
    ("target", "documents"),
    [(np.array(1), (7,)), (np.arange(7), (7,)), (np.array([2, 3]), (7,)), (np.ones(7), (7,)), (np.array(1), (2, 3, 2))],
)
def test_rows_are_made_a_multiple_by_an_example_without_a_loss(target, documents):
    """Of a class, tokens, an answer, seven labels beside as many tokens, and a choice of three."""
    example = Example(np.arange(7), np.zeros(7, np.int64), target, 1, 0, documents)
    given = {"global_size": 5, "micro_tokens": 100, "labels": "targets", "shuffle": False}
    (plain,), (filled,) = (
        next(TaskReader([example], multiple=multiple, **given).steps(stop=5)).micro_batches for multiple in (1, 8)
    )
    size = filled["input_ids"].shape[1]
    assert size % 8 == 0
    assert size - 35 <= 8
    for name in ("input_ids", "positions", "token_types"):
        assert (filled[name][:, :35] == plain[name]).all()
        assert filled[name].shape == (1, size)
    assert filled["cu_seqlens"][: 5 * len(documents) + 1].tolist() == plain["cu_seqlens"].tolist()
    assert len(filled["cu_seqlens"]) == 6 * len(documents) + 1  # as many documents as another
    assert filled["cu_seqlens"][-1] == size
    per_token = target.dtype == np.int64 and target.shape == (7,)
    known = filled["targets"][:, :35] if per_token else filled["targets"][:5]
    rest = filled["targets"][:, 35:] if per_token else filled["targets"][5:]
    assert (known == plain["targets"]).all()
    assert (np.isnan(rest) if target.dtype == np.float64 else rest == -100).all()
    assert plain["targets"].shape == ((1, 35) if per_token else (5, *target.shape))


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
@pytest.mark.parametrize("micro_tokens", [30, 64, 1000])
def test_ranks_and_rows_change_nothing_of_a_step(num_ranks, micro_tokens):
    alone = seen([reader()], 12)
    ranks = [reader(rank, num_ranks, micro_tokens=micro_tokens) for rank in range(num_ranks)]
    assert seen(ranks, 12) == alone
    prints = [[batch.fingerprint for batch in each.steps(0, stop=96)] for each in ranks]
    assert [sum(step) % 2**64 for step in zip(*prints, strict=True)] == [
        batch.fingerprint for batch in reader().steps(0, stop=96)
    ]


def test_rows_hold_no_padding_and_no_more_than_they_may():
    for batch in reader(micro_tokens=40).steps(0, stop=48):
        for micro in batch.micro_batches:
            assert micro["input_ids"].size == micro["cu_seqlens"][-1] <= 40


def test_a_run_that_goes_on_reads_what_the_other_would_have():
    straight = [batch.fingerprint for batch in reader().steps(0, stop=80)]
    assert [batch.fingerprint for batch in reader().steps(40, stop=80)] == straight[5:]


def test_a_fingerprint_sees_ids_targets_and_order():
    base = reader().fingerprint
    for change in ("ids", "target", "order"):
        examples = list(EXAMPLES)
        if change == "order":
            examples[0], examples[1] = examples[1], examples[0]
        else:
            one = examples[0]
            new = {"ids": one.ids, "types": one.types, "target": one.target} | {change: getattr(one, change) + 1}
            examples[0] = Example(**new, num_targets=1, record_index=0, documents=one.documents)
        other = TaskReader(examples, global_size=8, micro_tokens=64, labels="targets", seed=3)
        assert other.fingerprint != base, change


def test_batches_go_through_all_examples_once_over_the_ranks():
    numbers = []
    batches = [list(reader(rank, 3).batches()) for rank in range(3)]
    assert len({len(each) for each in batches}) == 1
    for each in batches:
        for micro, of_it in each:
            numbers += of_it
            if of_it:
                assert [ids for ids, _ in documents(micro)] == [EXAMPLES[n].ids.tolist() for n in of_it]
    assert sorted(numbers) == list(range(50))


def test_rows_are_balanced_and_says_where_it_does_not_fit():
    lengths = np.array([9, 1, 5, 5, 4, 8])
    rows = balance_rows(lengths, 2, 17)
    assert sorted(int(lengths[row].sum()) for row in rows) == [15, 17]
    assert all((np.diff(row) > 0).all() for row in rows)
    assert balance_rows(lengths, 2, 16) is None


def test_targets_of_each_shape_are_packed():
    def packed(*targets):
        ids = np.arange(3)
        return pack([Example(ids, ids, target, 1, 0, (3,)) for target in targets], "x")["x"]

    assert packed(np.array(1), np.array(2)).tolist() == [1, 2]
    assert packed(np.array([0.0, 1.0]), np.array([1.0, 0.0])).tolist() == [[0, 1], [1, 0]]
    assert packed(np.arange(3), np.arange(3)).tolist() == [[0, 1, 2, 0, 1, 2]]


def test_an_example_that_is_longer_than_a_row_is_refused():
    longest = max(len(example.ids) for example in EXAMPLES)
    with pytest.raises(ValueError, match=f"the longest example has {longest} tokens, and batch.micro_tokens is 10"):
        reader(micro_tokens=10)


def test_learned_tokens_are_put_into_each_document_and_targets_move_along():
    ids = np.arange(10, 17)
    plain = Example(ids, np.array([0, 0, 0, 1, 0, 0, 0]), np.array(1), 1, 0, (4, 3))
    found = insert_virtual_tokens(plain, 2, position=1)
    assert found.ids.tolist() == [10, -1, -2, 11, 12, 13, 14, -1, -2, 15, 16]
    assert found.types.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert found.documents == (6, 5)
    assert int(found.target) == 1
    labels = Example(ids, ids, np.arange(7), 7, 0, (7,), alignment=np.arange(7))
    assert insert_virtual_tokens(labels, 2, position=0).target.tolist() == [-100, -100, *range(7)]
    assert insert_virtual_tokens(labels, 2, position=1).alignment.tolist() == [0, -1, -1, *range(1, 7)]
    for target, moved in (((0, 0), [0, 0]), ((2, 3), [4, 5]), ((-100, -100), [-100, -100])):
        span = Example(ids, ids, np.array(target), 1, 0, (7,), alignment=np.zeros((7, 2), int))
        assert insert_virtual_tokens(span, 2, position=1).target.tolist() == moved
        assert insert_virtual_tokens(span, 2, position=1).alignment.shape == (9, 2)
