"""How sharing out and writing down a checkpoint grow with the number of ranks, for a Llama of 405 billion parameters.

python benchmarks/manifest_scale.py [--ranks 16 64 256]

No tensor exists: only the rectangles that FSDP2 x tensor 8 gives to each rank, of weights and two moments. Each number
of ranks has a process of its own.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

TENSOR = 8


def rectangles(ranks: int):
    """For each rank, (key, bytes) of all that it holds."""
    from model.config import ModelConfig
    from model.sizes import held_shapes

    config = ModelConfig(
        num_layers=126, width=16384, num_heads=128, num_kv_heads=8, mlp_width=53248, vocab_size=128256,
        max_positions=8192, norm="rmsnorm", gated_mlp=True, activation="silu", positions="rotary", bias=False,
        tie_head=False,
    )  # fmt: skip
    whole, held = held_shapes(config), held_shapes(config, TENSOR)
    shard = ranks // TENSOR
    for rank in range(ranks):
        data, tensor = divmod(rank, TENSOR)
        mine = []
        for name, shape in held.items():
            dim = next((d for d in range(len(shape)) if shape[d] != whole[name][d]), None)
            rows = -(-shape[0] // shard)
            offset, size = [0] * len(shape), list(shape)
            offset[0], size[0] = data * rows, max(0, min(rows, shape[0] - data * rows))
            if dim is not None:
                offset[dim] += tensor * shape[dim]
            if size[0]:
                count = 4 * size[0] * (size[1] if len(size) > 1 else 1)
                for kind in ("model/", "optimizer/exp_avg/", "optimizer/exp_avg_sq/"):
                    mine.append(((kind + name, tuple(offset), tuple(size)), count))
        yield mine


def measure(ranks: int) -> None:
    from parallel.checkpoint.format import make_manifest
    from parallel.checkpoint.owners import share_out

    everywhere = list(rectangles(ranks))
    start = time.perf_counter()
    owner = share_out(everywhere)
    shared = time.perf_counter() - start
    parts = [{"file": f"rank-{rank:05d}.safetensors", "bytes": 0, "tensors": []} for rank in range(ranks)]
    for (name, offset, size), rank in owner.items():
        box = {"file": parts[rank]["file"], "key": f"{name}@{offset}", "offset": [*offset], "shape": [*size]}
        parts[rank]["tensors"].append({"name": name, "shape": [], "dtype": "float32", "digest": 1, "rectangle": box})
    manifest = make_manifest(parts, 1, {})
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    count = sum(len(entry["rectangles"]) for entry in manifest["tensors"].values())
    print(f"{ranks:6} ranks: {count:10,} rectangles, {shared:6.1f} s to share out, {seconds:6.1f} s in all", end="")
    print(f", {peak / 1e9:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--one", type=int, help="for the processes that this command starts")
    options = parser.parse_args()
    if options.one:
        measure(options.one)
        return
    for ranks in options.ranks:
        subprocess.run([sys.executable, __file__, "--one", str(ranks)], check=True)


if __name__ == "__main__":
    main()
