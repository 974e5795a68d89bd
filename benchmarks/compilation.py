"""What compiling costs at the start of a run: with an empty cache, and with the cache of an earlier start.

python benchmarks/compilation.py [--repeats 3]

Each measurement is a fresh process that takes one training step and one evaluation of a small model, with the cache of
compiled code in a folder of its own (parallel.compile_cache): empty the first time, and as the first has left it the
second time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import _clone  # noqa: F401  # this clone's ingot

FAMILIES = ("gpt2", "qwen3", "modernbert")


def start(family: str) -> None:
    """Prints the seconds of compilation and of all, and the number of graphs, as JSON."""
    import torch

    from ingot.launcher.training.build import varying
    from ingot.model.config import ModelConfig
    from ingot.model.huggingface.families.presets import PRESETS
    from ingot.model.initialization import initialize
    from ingot.model.transformer import LanguageModel
    from ingot.parallel.engines.compilation import compile_blocks

    shape = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 128, "max_position_embeddings": 512}
    model = LanguageModel(ModelConfig(**{**PRESETS[family], **shape}))
    initialize(model, 0)
    compilation = compile_blocks(list(model.blocks), varying)
    ids = torch.randint(0, 8000, (4, 512))
    bounds = torch.tensor([0, 300, 512, 700, 1024, 1536, 2048], dtype=torch.int32)
    begin = time.perf_counter()
    model(ids, labels_BT=ids, cu_seqlens=bounds).backward()
    model.eval()
    with torch.no_grad():
        model(ids, labels_BT=ids, cu_seqlens=bounds)
    seconds = time.perf_counter() - begin
    assert not compilation.notes
    print(json.dumps([compilation.seconds, seconds, compilation.graphs]))


def measure(family: str, folder: str) -> list[float]:
    variables = {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": f"{folder}/triton"}
    command = [sys.executable, __file__, "--start", family]
    result = subprocess.run(command, env=os.environ | variables, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--start", choices=FAMILIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        start(options.start)
        return
    print(f"{'family':<12}{'cache':<8}{'graphs':>7}{'compiling s':>13}{'range':>16}{'step and evaluation s':>23}")
    for family in FAMILIES:
        found: dict[str, list] = {"empty": [], "warm": []}
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                for cache in found:
                    found[cache].append(measure(family, folder))
        for cache, results in found.items():
            compiling, whole, graphs = zip(*results, strict=True)
            spread = f"{min(compiling):.1f} to {max(compiling):.1f}"
            print(
                f"{family:<12}{cache:<8}{graphs[0]:>7}{statistics.median(compiling):>13.1f}{spread:>16}"
                f"{statistics.median(whole):>23.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
