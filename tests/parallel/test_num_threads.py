"""OMP_NUM_THREADS of the user counts, also 1; that of torchrun does not."""

import os
import subprocess
from pathlib import Path

import pytest

from ingot.parallel.num_threads import num_threads
from tests.launcher.runs import BIN, ROOT, environment
from tests.ranks import free_port


def test_without_a_launcher(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert (num_threads(1), num_threads(10**6)) == (cores, 1)
    for value in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert num_threads(1) is None


@pytest.mark.distributed
@pytest.mark.parametrize("chosen", [None, "1"])
def test_under_torchrun(chosen, tmp_path):
    """With a shell between torchrun and one of the two processes."""
    variables = environment() | {"PYTHONPATH": str(ROOT)}
    del variables["OMP_NUM_THREADS"]
    script = "import os; from ingot.parallel.num_threads import num_threads; name = 'rank-' + os.environ['RANK']"
    script += "; open(name, 'w').write(os.environ['OMP_NUM_THREADS'] + ' ' + str(num_threads(1)))"
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text(f'[ "$RANK" = 0 ] && exec {BIN}/python -c "{script}"\n{BIN}/python -c "{script}"\n')
    command = [BIN / "torchrun", "--nproc_per_node", 2, "--master_port", free_port(), "--no-python", "bash", wrapper]
    subprocess.run(
        list(map(str, command)),
        env=variables | ({"OMP_NUM_THREADS": chosen} if chosen else {}),
        cwd=tmp_path,
        check=True,
    )
    expected = None if chosen else len(os.sched_getaffinity(0))
    assert [Path(tmp_path, f"rank-{rank}").read_text() for rank in range(2)] == [f"1 {expected}"] * 2
