"""What all ranks must have in common is compared before anything depends on it: ranks with different options would wait
for each other, or train something that no configuration describes.

The comparison goes through the store of the rendezvous, since a process group may already depend on what differs.
"""

import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence

import torch.distributed as dist

MOST_NAMED = 10  # differences in a message
MOST_CHARACTERS = 120  # of a value in it


def agree(store: dist.Store, rank: int, world_size: int, values: Mapping[str, str], seconds: float) -> None:
    """Compares `values` of all ranks. Each rank must call it.

    Args:
        values: what must be the same everywhere, by name.
        seconds: how long to wait for the other ranks.

    Raises:
        ValueError: they differ; raised on all ranks. The message has the names, the values, and the ranks that have
            them. Or a rank has not answered in time.
    """
    end, text = time.monotonic() + seconds, json.dumps(dict(values), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if store.compare_set("digest", "", digest).decode() != digest:
        store.set("different", "1")
    _meet(store, "compared", world_size, end)
    if not store.check(["different"]):
        return
    store.set(f"digest-{rank}", digest)
    store.compare_set(f"values-{digest}", "", text)
    _meet(store, "told", world_size, end)
    digests = [each.decode() for each in store.multi_get([f"digest-{each}" for each in range(world_size)])]
    told = {each: json.loads(store.get(f"values-{each}")) for each in dict.fromkeys(digests)}
    num_ready = store.add("heard", 1)
    while rank == 0 and num_ready < world_size and time.monotonic() < end:  # it may hold the store
        time.sleep(0.01)
        num_ready = store.add("heard", 0)
    raise ValueError(
        "the ranks do not agree: " + "; ".join(differences([told[each] for each in digests])) + ". Start all ranks "
        "with the same options, versions and files"
    )


def differences(values: Sequence[Mapping[str, str]]) -> list[str]:
    """What differs between ranks: for each name its values, and who has them.

    Args:
        values: of each rank, by name.
    """
    names = dict.fromkeys(name for each in values for name in each)
    unequal = [name for name in names if len({each.get(name) for each in values}) > 1]
    found = []
    for name in unequal[:MOST_NAMED]:
        ranks: dict[str | None, list[int]] = {}
        for rank, each in enumerate(values):
            ranks.setdefault(each.get(name), []).append(rank)
        said = [f"{_short(value)} on {_named(holders)}" for value, holders in ranks.items()]
        found.append(f"{name} is {' and '.join(said)}")
    return found + ([f"and {len(unequal) - MOST_NAMED} more differences"] if len(unequal) > MOST_NAMED else [])


def _meet(store: dist.Store, name: str, world_size: int, end: float) -> None:
    """Waits until all ranks have come here."""
    if store.add(name, 1) == world_size:
        store.set(f"all-{name}", "1")
    pause = 0.01
    while not store.check([f"all-{name}"]):
        if time.monotonic() > end:
            raise ValueError(
                "a rank that had registered has not told its configuration in time (parallel.rendezvous_seconds); its "
                "own message says why, or it has been killed"
            )
        time.sleep(pause)
        pause = min(1.0, 1.5 * pause)


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return value if len(value) <= MOST_CHARACTERS else f"{value[: MOST_CHARACTERS - 3]}..."


def _named(ranks: Sequence[int]) -> str:
    """`rank 3`, or `ranks 0, 2 to 7`."""
    runs = []
    for _, group in itertools.groupby(enumerate(ranks), lambda pair: pair[1] - pair[0]):
        run = [rank for _, rank in group]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}")
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(runs)}"
