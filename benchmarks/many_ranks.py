"""Ranks of one machine that start, train a toy model, and lose one of them: connections, open files, seconds.

python benchmarks/many_ranks.py                       # 2, 16 and 64 ranks, beside gloo's full mesh: 3 minutes
python benchmarks/many_ranks.py --ranks 64 --lost 1   # an inner rank of the tree in which they watch each other

Each rank is a process of its own, forked from one that has imported torch. `counted` is the largest number of sockets
of a rank but rank 0, and `rank 0` its number; `calculated` is what parallel/open_files.py says of the same. Then the
same for 1,024 ranks by this arithmetic. `lost` are the seconds from a SIGKILL of one rank to the end of the last.
"""

import argparse
import tempfile
from pathlib import Path

import _clone  # noqa: F401

from ingot.parallel.open_files import num_connections
from tests.many_ranks import run_many_ranks
from tests.ranks import process_context

ROW = "{:>6} {:>10} {:>8} {:>8} {:>12} {:>6} {:>9} {:>8} {:>7} {:>10}"


def calculated(num_ranks: int, lazy: bool, children: int, groups: list[int] | None = None) -> tuple[int, int]:
    """Of rank 0, and the most of another rank."""
    groups = groups or [num_ranks, 1, 1]
    of_all = [
        num_connections(rank, groups, holds_store=rank == 0, lazy=lazy, children=children) for rank in range(num_ranks)
    ]
    return of_all[0], max(of_all[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 16, 64])
    parser.add_argument("--lost", type=int, help="the rank that is killed; by default the last")
    parser.add_argument("--children", type=int, default=32, help="ranks directly below a rank of the tree")
    options = parser.parse_args()
    process_context().Process(target=int).start()  # the server of forks makes its imports now
    names = ("ranks", "gloo", "rank 0", "counted", "calculated", "files", "start, s", "step, s", "lost, s", "named by")
    print(ROW.format(*names))
    for lazy, num_ranks in [(lazy, number) for lazy in (True, False) for number in options.ranks]:
        lost = num_ranks - 1 if options.lost is None else options.lost
        with tempfile.TemporaryDirectory() as folder:
            ranks = run_many_ranks(num_ranks, lost, Path(folder), children=options.children, lazy=lazy)
        others = [rank for number, rank in enumerate(ranks) if number != lost]
        named = sum(f"lost its connection to rank {lost}:" in rank.output for rank in others)
        expected = calculated(num_ranks, lazy, options.children, list(ranks[0].group_sizes))
        print(
            ROW.format(
                num_ranks,
                "lazy" if lazy else "full mesh",
                ranks[0].sockets,
                max(rank.sockets for rank in ranks[1:]),
                "{}, {}".format(*expected),
                max(rank.files for rank in ranks),
                f"{max(rank.start_seconds for rank in ranks):.2f}",
                f"{max(rank.step_seconds for rank in ranks):.2f}",
                f"{max(rank.lost_seconds for rank in others):.1f}",
                f"{named} of {len(others)}",
            ),
            flush=True,
        )
    for lazy in (True, False):
        kind = "lazy" if lazy else "full mesh"
        print(ROW.format(1024, kind, "", "", "{}, {}".format(*calculated(1024, lazy, 32)), "", "", "", "", ""))


if __name__ == "__main__":
    main()
