"""Does every launcher and engine train the same model?

    python benchmarks/agreement.py                      # everything; about 15 minutes on 2 cores
    python benchmarks/agreement.py --precision fp32 --config configs/demo-bert.yaml

Runs configs/demo.yaml for 20 steps in each layout (`make demo` prepares its corpus). Prints, for each, the largest
relative difference of a step's loss from that of one process of the torch engine in the same precision. Exits with 1 if
one is above 1e-3 (bf16) or 1e-5 (fp32), or if a batch fingerprint differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "python": [sys.executable],
    "torchrun, 2 ranks": [BIN / "torchrun", "--nproc_per_node", "2", "--master_port", "29611"],
    "deepspeed, 1 rank": [BIN / "deepspeed", "--num_gpus", "1", "--master_port", "29612"],
    "deepspeed, 2 ranks": [BIN / "deepspeed", "--num_gpus", "2", "--master_port", "29613"],
}
ENGINES = ["torch", "ZeRO-0", "ZeRO-1", "ZeRO-2", "ZeRO-3"]
BOUNDS = {"bf16": 1e-3, "fp32": 1e-5}


def train(config: str, launcher: str, engine: str, precision: str, steps: int, folder: str) -> list[dict]:
    """The train records of one run."""
    name = f"{launcher}-{engine}-{precision}".replace(" ", "").replace(",", "-")
    layout = ["--parallel.engine", "fsdp"] if engine == "torch" else ["--parallel.zero_stage", engine[-1]]
    arguments = [
        *("--config", config, "--run.dir", folder, "--run.name", name, "--run.steps", str(steps)),
        *(
            "--run.log_every",
            "1",
            "--run.save_every",
            "0",
            "--data.validation",
            "[]",
            "--parallel.precision",
            precision,
        ),
    ]
    command = [*map(str, LAUNCHERS[launcher]), str(ROOT / "launcher/pretrain.py"), *arguments, *layout]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
    lines = [json.loads(line) for line in (Path(folder) / name / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", choices=BOUNDS, nargs="+", default=list(BOUNDS))
    parser.add_argument("--launcher", choices=LAUNCHERS, nargs="+", default=list(LAUNCHERS))
    parser.add_argument("--engine", choices=ENGINES, nargs="+", default=ENGINES)
    options = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for precision in options.precision:
            reference = train(options.config, "python", "torch", precision, options.steps, folder)
            first, last = reference[0]["loss"], reference[-1]["loss"]
            print(f"\n{precision}: loss {first:.6f} to {last:.6f} in {options.steps} steps\n")
            print("| launcher | " + " | ".join(options.engine) + " |")
            print("|---|" + "---|" * len(options.engine))
            for launcher in options.launcher:
                cells = []
                for engine in options.engine:
                    same = launcher == "python" and engine == "torch"
                    run = (
                        reference if same else train(options.config, launcher, engine, precision, options.steps, folder)
                    )
                    pairs = list(zip(run, reference, strict=True))
                    difference = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in pairs)
                    equal = all(a["batch_fingerprint"] == b["batch_fingerprint"] for a, b in pairs)
                    worst = max(worst, difference / BOUNDS[precision] if equal else float("inf"))
                    cells.append("reference" if same else f"{difference:.1e}" + ("" if equal else ", OTHER DATA"))
                print(f"| {launcher} | " + " | ".join(cells) + " |", flush=True)
    print(f"\nlargest difference: {worst:.2f} of its bound")
    return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main())
