"""The memory that a rank really holds, compared with the plan.

python benchmarks/memory.py [--ranks 2]

States are parameters, gradients and optimizer, counted from the tensors that exist after a backward pass; for ZeRO-3
with the buffers that stay. Activations are the tensors that exist at the end of a forward pass and did not before it.
"""

import argparse

import _clone  # noqa: F401

from ingot.parallel import mesh as meshes
from tests.layouts import Layout
from tests.memory_use import measure
from tests.ranks import run_ranks

STATES = [
    ("gpt2", Layout(engine, 1, 2, precision), {})
    for precision in ("bf16", "fp32")
    for engine in ("zero-0", "zero-1", "zero-2", "zero-3", "replicate", "fsdp2")
]
ACTIVATIONS = [
    (model, Layout("zero-1", tensor, 1, "bf16"), {"activation_checkpointing": recompute})
    for model in ("gpt2", "llama", "bert")
    for tensor in (1, 2)
    for recompute in ("none", "selective", "full")
]


def work(case: tuple) -> dict[str, float]:
    world = meshes.start("cpu")
    model, layout, parallel = case
    result = measure(model, layout, world, **parallel)
    meshes.stop()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    ranks = parser.parse_args().ranks
    for what, cases in (("states", STATES), ("activations", ACTIVATIONS)):
        print(f"{what} on {ranks} ranks, MB: measured, planned, measured / planned")
        worst = 1.0
        for case in cases:
            found = run_ranks(work, ranks, case)[0]
            ratio = found[what] / found[f"planned {what}"]
            worst = max(worst, ratio, 1 / ratio)
            model, layout, parallel = case
            name = f"{model}, {layout}" + "".join(f", {k} {v}" for k, v in parallel.items())
            print(f"  {name:70}{found[what] / 1e6:9.2f}{found[f'planned {what}'] / 1e6:9.2f}{ratio:8.3f}", flush=True)
        print(f"  farthest apart: {worst - 1:.1%}")


if __name__ == "__main__":
    main()
