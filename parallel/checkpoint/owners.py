"""Which rank answers for which part of the state, where several hold the same."""

from collections import defaultdict
from collections.abc import Sequence

import torch.distributed as dist

from parallel.catalog import Shard

Key = tuple[str, tuple[int, ...], tuple[int, ...]]


def owned(shards: list[Shard]) -> list[Shard]:
    """Those of my shards that I answer for. Each rank must call it."""
    keys = [(shard.key, shard.tensor.numel() * shard.tensor.element_size()) for shard in shards]
    everywhere: list = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, keys)
    owner = share_out(everywhere)
    return [shard for shard in shards if owner[shard.key] == dist.get_rank()]


def share_out(everywhere: Sequence[list[tuple[Key, int]]]) -> dict[Key, int]:
    """The rank that answers for each part: replicas are shared out evenly, by bytes.

    Args:
        everywhere: for each rank, what it holds, with its bytes.
    """
    holders, sizes = defaultdict(list), {}
    for rank, listed in enumerate(everywhere):
        for key, size in listed:
            holders[key].append(rank)
            sizes[key] = size
    load_of, owner = [0] * len(everywhere), {}
    for key in sorted(holders, key=lambda k: (len(holders[k]), -sizes[k], k)):
        owner[key] = min(holders[key], key=lambda r: (load_of[r], r))
        load_of[owner[key]] += sizes[key]
    return owner
