"""That packets between the two networks take as long as they should, and that nothing else connects them."""

import sys
import time

import pytest

from tests.delayed_network import ADDRESSES, run_in_two_networks
from tests.launcher.runs import environment

SUMS = """
import time, torch, torch.distributed as dist
dist.init_process_group("gloo")
value, seconds = torch.ones(1, dtype=torch.int64), []
for _ in range(12):
    dist.barrier()
    start = time.perf_counter()
    dist.all_reduce(value)
    seconds.append(time.perf_counter() - start)
print("result", int(value), sorted(seconds)[6])
large, start = torch.ones(1 << 20), time.perf_counter()
dist.all_reduce(large)
assert large.sum() == 2 << 20
print("large", time.perf_counter() - start)
"""


@pytest.mark.distributed
def test_a_sum_over_two_networks_takes_the_delay():
    """An all-reduce of 8 bytes takes at least one way and at most a few, with the delay and hardly anything without."""
    seconds = {}
    for delay in (0.0, 0.02):
        ends = run_in_two_networks([[sys.executable, "-c", SUMS]] * 2, delay, env=environment())
        assert [end.returncode for end in ends] == [0, 0], ends
        for end in ends:
            _, value, median = next(line for line in end.output.splitlines() if line.startswith("result")).split()
            assert int(value) == 2**12
            seconds.setdefault(delay, []).append(float(median))
    assert max(seconds[0.0]) < 0.02 <= min(seconds[0.02]), seconds
    assert 0.038 <= max(seconds[0.02]) < 0.15, seconds  # there and back


def test_a_command_that_fails_and_one_that_does_not_end():
    code = f"import socket; socket.create_connection(('{ADDRESSES[1]}', 9))"
    ends = run_in_two_networks([[sys.executable, "-c", code], ["sleep", "1"]], 0.001)
    assert [end.returncode for end in ends] == [1, 0]
    assert "refused" in ends[0].output  # by the other side: the packets have come through
    start = time.monotonic()
    with pytest.raises(AssertionError, match="not ended after 1 s"):
        run_in_two_networks([["sleep", "60"], ["true"]], 0.001, timeout=1)
    assert time.monotonic() - start < 10
