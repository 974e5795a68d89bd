"""Every layout trains the same model: losses and gradient norms of 10 steps in each, against one process.

python benchmarks/layouts.py            # 4 ranks, all engines, sizes and precisions: about 20 minutes
python benchmarks/layouts.py --models llama --engines zero-3 fsdp2 --tensor 2 --precisions fp32

One process means the plain loop of tests/layouts.py: whole batches, fp32, no engine. Layouts run on gloo ranks of this
machine. A row gives the largest relative difference of a loss or norm; the limit is 1e-5 in fp32, 5e-3 in bf16.
"""

import argparse
import itertools
import sys
import time
import traceback

import _clone  # noqa: F401

from ingot.parallel import mesh as meshes
from tests.layouts import GLOBAL, MODELS, Layout, difference, train, train_plainly
from tests.ranks import run_ranks

ENGINES = ("zero-0", "zero-1", "zero-2", "zero-3", "replicate", "fsdp2", "hsdp")
LIMIT = {"fp32": 1e-5, "bf16": 5e-3}


def run(model: str, layouts: list[Layout], expected: list[tuple[float, float]]) -> dict[Layout, float | str]:
    """In each rank: the difference of each layout, or why it failed, printed as they come."""
    world, results = meshes.start("cpu"), {}
    for layout in layouts:
        start = time.perf_counter()
        try:
            results[layout] = difference(train(model, layout, world), expected)
        except Exception:
            results[layout] = traceback.format_exc()
        if world.is_main:
            value = results[layout]
            shown = f"{value:.1e}" if isinstance(value, float) else f"failed\n{value}"
            print(f"{model:6} {layout!s:55} {shown}  ({time.perf_counter() - start:.1f} s)", flush=True)
        if isinstance(results[layout], str):
            break  # the other ranks may be elsewhere
    meshes.stop()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--tensor", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--accumulation", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    options = parser.parse_args()

    results: dict[tuple[str, Layout], float | str] = {}
    for model in options.models:
        layouts = [
            Layout(engine, tensor, accumulation, precision)
            for engine, tensor, accumulation, precision in itertools.product(
                options.engines, options.tensor, options.accumulation, options.precisions
            )
            if options.ranks % tensor == 0 and GLOBAL % (options.ranks // tensor * accumulation) == 0
            if engine != "hsdp" or options.ranks // tensor >= 4  # replicas of shards need four data ranks
        ]
        found = run_ranks(run, options.ranks, model, layouts, train_plainly(model), timeout=3600.0)[0]
        results |= {(model, layout): value for layout, value in found.items()}

    print(f"\nlargest relative difference, {options.ranks} ranks, over accumulation {options.accumulation}:")
    print("| engine | tensor |" + "".join(f" {m}, {p} |" for m in options.models for p in options.precisions))
    print("|---" * (2 + len(options.models) * len(options.precisions)) + "|")
    for engine, tensor in itertools.product(options.engines, options.tensor):
        cells = []
        for model, precision in itertools.product(options.models, options.precisions):
            values = [
                value
                for (name, layout), value in results.items()
                if (name, layout.engine, layout.tensor, layout.precision) == (model, engine, tensor, precision)
            ]
            failed = any(isinstance(value, str) for value in values)
            cells.append("failed" if failed else f"{max(values):.1e}" if values else "-")
        print(f"| {engine} | {tensor} | " + " | ".join(cells) + " |")
    misses = [key for key, value in results.items() if isinstance(value, str) or value > LIMIT[key[1].precision]]
    print(f"{len(results)} runs, {len(misses)} above the limit" + "".join(f"\n  {m} {x}" for m, x in misses))
    sys.exit(bool(misses))


if __name__ == "__main__":
    main()
