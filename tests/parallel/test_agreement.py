"""What differs between ranks is named, with its values and ranks, on all of them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from ingot.parallel.agreement import agree, differences


def outcomes(values: list[dict[str, str]], seconds: float = 10) -> list[str]:
    """What each rank hears; "" if all is the same."""
    store = dist.HashStore()

    def rank(number: int) -> str:
        try:
            agree(store, number, len(values), values[number], seconds)
        except ValueError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(values)) as pool:
        return list(pool.map(rank, range(len(values))))


def test_equal_ranks_go_on():
    assert outcomes([{"a": "1", "b": "2"}, {"b": "2", "a": "1"}, {"a": "1", "b": "2"}]) == [""] * 3


def test_all_ranks_hear_what_differs():
    heard = outcomes([{"rate": "1", "same": "x"}, {"rate": "2", "same": "x"}, {"rate": "1", "same": "x"}])
    assert len(set(heard)) == 1
    assert heard[0].startswith("the ranks do not agree: rate is 1 on ranks 0, 2 and 2 on rank 1. Start all ranks")


def test_a_rank_that_says_nothing_is_not_waited_for():
    store = dist.HashStore()
    with pytest.raises(ValueError, match="has not told its configuration in time"):
        agree(store, 0, 2, {}, 0.1)


def test_differences_in_words():
    values = [{"a": "1"}, {"a": "2"}, {"a": "1"}, {"a": "1"}, {"b": "x" * 200, "a": "1"}]
    assert differences(values) == [
        "a is 1 on ranks 0, 2 to 4 and 2 on rank 1",
        f"b is absent on ranks 0 to 3 and {'x' * 117}... on rank 4",
    ]
    many = [{str(n): str(rank) for n in range(13)} for rank in range(2)]
    assert len(differences(many)) == 11
    assert differences(many)[-1] == "and 3 more differences"
