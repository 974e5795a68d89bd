"""How many files and connections a rank has open, and the limit of its process, which is raised to what it needs.

A process may often open 1,024 files only, and in a run of many ranks some of them hold a connection to each rank.
"""

import os
import resource
from collections.abc import Sequence

LAZY = "TORCH_GLOO_LAZY_INIT"
"""With this variable at 1, gloo connects two ranks when they first have something to send each other (torch 2.8 and
later). Without it, each group of n ranks has n x (n - 1) / 2 connections from the start."""

NUM_GROUPS_OF_ALL = 3
"""Groups of all ranks in a run: the default one, and room for those that libraries make (DeepSpeed takes ours)."""

STORE_CONNECTIONS_OF_SPLIT = 3
"""A group that is split from another (on CUDA) clones its connection to the store: once itself, once for each back-end
(torch 2.11 to 2.13, ProcessGroup::splitGroup and the back-ends' split)."""

FILES_OF_PROCESS = 256
"""What a rank opens beside its connections: libraries, shards that threads read ahead, logs, checkpoints."""

CHILDREN = 32
"""Of a rank in the tree in which the ranks watch each other."""


def num_connections(
    rank: int,
    group_sizes: Sequence[int],
    *,
    holds_store: bool,
    lazy: bool = True,
    children: int = CHILDREN,
    store_connections: int = 1,
) -> int:
    """The number of sockets of a rank that has taken part in a sum, a barrier, a broadcast and a gather over all ranks,
    and in a sum in its other groups.

    They belong to the rendezvous's store (its holder has those of each rank, its own end of its own, and listens), to
    gloo (in each group one that listens, and those of `_peers`), and to the tree in which ranks watch each other.

    Args:
        group_sizes: the number of ranks in each process group of this rank, the group of all ranks first.
        holds_store: whether this process holds the store; under torchrun its agent does.
        lazy: whether gloo connects ranks when they first need it.
        store_connections: of each rank to the store.
    """
    world_size = group_sizes[0]
    of_store = store_connections + (store_connections * world_size + 1) * holds_store
    of_groups = len(group_sizes)
    for number, size in enumerate(group_sizes):
        if not lazy:
            of_groups += size - 1
        else:
            of_groups += len(_peers(rank, size)) if number == 0 else min(2, size - 1)  # a sum goes around a ring
    below = max(0, min(children, world_size - 1 - rank * children))
    of_watchdog = below + (below > 0) + (rank > 0)
    return of_store + of_groups + of_watchdog


def _peers(rank: int, size: int) -> set[int]:
    """With whom a rank talks in the group of all ranks: those at a distance of a power of 2 (a sum, a barrier and a
    broadcast need no others), and rank 0, which gathers from each."""
    if rank == 0:
        return set(range(1, size))
    distances = [2**k for k in range((size - 1).bit_length())]
    return ({(rank + sign * distance) % size for distance in distances for sign in (1, -1)} | {0}) - {rank}


def raise_file_limit(needed: int, purpose: str) -> None:
    """Lets this process open as many files as the system allows it.

    Args:
        needed: the number that it will have open.
        purpose: of these files, for the message.

    Raises:
        ValueError: the system does not allow so many. The message has the numbers and the remedy.
    """
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < needed:
        raise ValueError(
            f"{purpose} needs up to {needed:,} open files in one process, and this system allows {most:,} (ulimit -H "
            f"-n). Let the administrator raise it: nofile in /etc/security/limits.conf, LimitNOFILE of the service, or "
            f"--ulimit nofile=65536 of a container"
        )
    if limit == resource.RLIM_INFINITY or (most != resource.RLIM_INFINITY and limit >= most):
        return
    for wanted in (most, max(limit, needed)):  # some systems refuse what they call the most
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            return
        except (ValueError, OSError):
            continue


def lazy_connections() -> bool:
    """Whether gloo connects two ranks when they first need it, as the environment says."""
    return os.environ.get(LAZY, "0").upper() in ("1", "Y", "TRUE", "ON", "YES")
