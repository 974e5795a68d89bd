"""Each layout loads what each other layout has saved, with the optimizer, and continues to train without a difference.

python benchmarks/checkpoint_matrix.py [--model llama]

Every layout trains 6 steps, saves, and trains 6 more. Every layout then loads each of these checkpoints into an engine
whose state was made invalid before (all digests are checked), saves its state (all digests must be the same again),
and trains the 6 steps. A cell is the largest relative difference of a loss or gradient norm from the run that saved.
The limit is 1e-5 in fp32.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import _clone  # noqa: F401
import torch

from ingot.parallel import checkpoint
from ingot.parallel import mesh as meshes
from tests.layouts import MODELS, Layout, difference, engine_in, train_on
from tests.ranks import run_ranks

FIRST, LAST, LIMIT = 6, 12, 1e-5
LAYOUTS = [
    (1, Layout("replicate")),
    (2, Layout("replicate")),
    *((ranks, Layout(f"zero-{stage}")) for ranks in (2, 4) for stage in (1, 2, 3)),
    (4, Layout("zero-1", 2)),
    (4, Layout("zero-3", 2)),
    (2, Layout("fsdp2")),
    (4, Layout("fsdp2")),
    (4, Layout("fsdp2", 2)),
    (4, Layout("hsdp")),
    (4, Layout("replicate", 4)),
]


def name(index: int) -> str:
    ranks, layout = LAYOUTS[index]
    return f"{layout.engine}{f' x tensor {layout.tensor}' if layout.tensor > 1 else ''} on {ranks}"


def digests(path: Path) -> dict[str, str]:
    return {key: entry["digest"] for key, entry in json.loads((path / "manifest.json").read_text())["tensors"].items()}


def save(ranks: int, model: str, folder: Path) -> dict[int, list]:
    world, after = meshes.start("cpu"), {}
    for index, (wanted, layout) in enumerate(LAYOUTS):
        if wanted == ranks:
            engine = engine_in(model, layout, world)
            train_on(engine, model, layout, 0, FIRST)
            checkpoint.save(folder / str(index), engine.shards(), step=FIRST, metadata={}, keep=0)
            after[index] = train_on(engine, model, layout, FIRST, LAST)
    meshes.stop()
    return after


def load(ranks: int, model: str, folder: Path, target: int) -> dict[int, list]:
    """Losses and norms after loading each source, or the word that digests differ."""
    world, after = meshes.start("cpu"), {}
    layout = LAYOUTS[target][1]
    for source in range(len(LAYOUTS)):
        path = folder / str(source) / checkpoint.step_name(FIRST)
        engine = engine_in(model, layout, world)
        for shard in engine.shards():
            shard.tensor.fill_(torch.nan)  # whatever is not read shows
        checkpoint.load(path, engine.shards())
        engine.sync_from_shards(FIRST)
        again = checkpoint.save(folder / f"again-{target}", engine.shards(), step=FIRST, metadata={}, keep=1)
        same = digests(again) == digests(path)
        torch.distributed.barrier()
        if world.is_main:
            shutil.rmtree(folder / f"again-{target}")
        after[source] = train_on(engine, model, layout, FIRST, LAST) if same else "digests differ"
    meshes.stop()
    return after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="llama")
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory() as folder:
        straight: dict[int, list] = {}
        for ranks in sorted({ranks for ranks, _ in LAYOUTS}):
            straight |= run_ranks(save, ranks, ranks, model, Path(folder), timeout=600.0)[0]
        print(f"{model}, {len(LAYOUTS)} layouts. Columns: who saved, in the order of the rows.")
        worst, failed = 0.0, 0
        for target, (ranks, _) in enumerate(LAYOUTS):
            found = run_ranks(load, ranks, ranks, model, Path(folder), target, timeout=600.0)[0]
            cells = []
            for source, results in found.items():
                value = results if isinstance(results, str) else difference(results, straight[source])
                failed += isinstance(value, str) or value > LIMIT
                worst = max(worst, 0.0 if isinstance(value, str) else value)
                cells.append(value if isinstance(value, str) else f"{value:.0e}")
            print(f"{name(target):28}{'  '.join(cells)}", flush=True)
        print(f"{len(LAYOUTS) ** 2} pairs, {failed} failed, farthest apart {worst:.1e}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
