"""How the time to plan and describe a checkpoint grows with the number of ranks, for a Llama of 405 billion parameters.

python benchmarks/manifest_scale.py [--ranks 64 1024 16384]

There are no tensors, only the rectangles that FSDP2 x tensor 8 gives to each rank, for weights and two moments. The
work of rank 0 is measured: to assign owners, to write the manifest as text, to read and check it, and to find in it
what one rank of another layout (with a quarter of the ranks) reads. Each number of ranks has a process of its own.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _clone  # noqa: F401

TENSOR = 8


def shapes() -> tuple[dict, dict]:
    """By tensor: the whole shape, and that of one tensor rank's part."""
    from ingot.model.config import ModelConfig
    from ingot.model.costs.memory import local_shapes

    config = ModelConfig(
        num_hidden_layers=126, hidden_size=16384, num_attention_heads=128, num_key_value_heads=8,
        intermediate_size=53248, vocab_size=128256, max_position_embeddings=8192, norm="rmsnorm",
        gated_mlp=True, activation="silu", positions="rotary", bias=False, tie_word_embeddings=False,
    )  # fmt: skip
    return local_shapes(config), local_shapes(config, TENSOR)


def rectangle(whole: tuple, held: tuple, rank: int, ranks: int):
    """What a rank holds of a tensor; None where there is nothing left for it."""
    from ingot.parallel.tensor_shards import Rectangle

    data, tensor = divmod(rank, TENSOR)
    dim = next((d for d in range(len(held)) if held[d] != whole[d]), None)
    rows = -(-held[0] // (ranks // TENSOR))
    offset, size = [0] * len(held), list(held)
    offset[0], size[0] = data * rows, max(0, min(rows, held[0] - data * rows))
    if dim is not None:
        offset[dim] += tensor * held[dim]
    return Rectangle(tuple(offset), tuple(size)) if size[0] else None


KINDS = ("model/", "optimizer/exp_avg/", "optimizer/exp_avg_sq/")


def measure(ranks: int) -> None:
    import numpy as np

    from ingot.parallel.checkpoint.format import file_of, stored_shards
    from ingot.parallel.checkpoint.manifest import make_manifest, read_manifest, write_manifest
    from ingot.parallel.checkpoint.owners import assign_owners

    whole, held = shapes()
    table = {kind + name: (tuple(whole[name]), "float32") for kind in KINDS for name in sorted(whole)}
    everywhere = []
    for rank in range(ranks):
        rectangles = [rectangle(whole[name], held[name], rank, ranks) for name in sorted(whole)]
        one = np.full((len(whole), 5), -1, np.int32)
        for number, part in enumerate(rectangles):
            if part is not None:
                dims = len(part.shape)
                one[number, 0], one[number, 1 : 1 + dims], one[number, 3 : 3 + dims] = number, part.offset, part.shape
        one = one[one[:, 0] >= 0]
        rows = np.concatenate([one] * len(KINDS))
        rows[:, 0] += np.repeat(np.arange(len(KINDS), dtype=np.int32) * len(whole), len(one))
        everywhere.append(rows)
    start = time.perf_counter()
    masks, entries = assign_owners(everywhere, table)
    shared = time.perf_counter() - start
    # Files without content, of the size that they would have.
    itemsize = [np.prod(rows[:, 3:], axis=1, where=rows[:, 3:] > 0) * 4 for rows in everywhere]
    written_bytes = [int(sizes[mask].sum()) for sizes, mask in zip(itemsize, masks, strict=True)]
    files = {file_of(rank): {"bytes": size, "sha256": "0" * 64} for rank, size in enumerate(written_bytes)}
    with tempfile.TemporaryDirectory() as folder:
        for name, file in files.items():
            (Path(folder) / name).touch()
            os.truncate(Path(folder) / name, file["bytes"])
        start = time.perf_counter()
        write_manifest(Path(folder), make_manifest(entries, dict.fromkeys(entries, 1), files, 1, {}))
        size = (Path(folder) / "manifest.json").stat().st_size
        seconds = shared + time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        start = time.perf_counter()
        read_manifest(Path(folder))
        read = time.perf_counter() - start
    start = time.perf_counter()
    for kind in KINDS:
        for name in whole:
            part = rectangle(whole[name], held[name], 0, max(TENSOR, ranks // 4))
            sum(1 for _ in stored_shards(kind + name, entries[kind + name], part))
    found = time.perf_counter() - start
    count, written = sum(len(part) for part in everywhere), sum(int(mask.sum()) for mask in masks)
    most, mean = max(written_bytes), sum(written_bytes) / ranks
    print(
        f"{ranks:6} ranks: {count:,} rectangles, {written:,} written; {shared:.1f} s to assign owners, {seconds:.1f} s "
        f"with the manifest of {size / 1e6:.1f} MB, {peak / 1e9:.2f} GB at most; a rank reads and checks it in "
        f"{read:.1f} s and finds its pieces in {found:.1f} s; the fullest rank writes {most / mean:.3f} times the mean"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 1024, 16384])
    parser.add_argument("--one", type=int, help="for the processes that this command starts")
    options = parser.parse_args()
    if options.one:
        measure(options.one)
        return
    for ranks in options.ranks:
        subprocess.run([sys.executable, __file__, "--one", str(ranks)], check=True)


if __name__ == "__main__":
    main()
