"""What fewer bits cost a model: the same small GPT trained with and without float8 products and bf16 moments.

python benchmarks/float8.py                                  # 320 steps, 3 seeds, an hour on one core
python benchmarks/float8.py --variant plain bf16_states --steps 1000 --precision bf16

Runs configs/demo.yaml (`make demo` prepares its corpus) in one process of the torch engine, with each seed in each
variant. The seeds have different first weights and data orders, the variants of one seed the same. It prints the
validation loss at the end, and the mean difference from `plain` over the seeds, with its standard deviation. To see
which differences are chance, `other_eps` and `other_rate` change a number by so little that it could not matter by
itself.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {
    "plain": [],
    "other_eps": ["--optimizer.eps", "1.01e-8"],  # 1 % more: no rounding changes less
    "other_rate": ["--optimizer.learning_rate", "4.01e-3"],  # 0.25 % more: about as much as a bf16 number has
    "tensorwise": ["--parallel.float8", "tensorwise"],
    "rowwise": ["--parallel.float8", "rowwise"],
    "bf16_states": ["--optimizer.state_dtype", "bf16"],
    "rowwise_and_bf16_states": ["--parallel.float8", "rowwise", "--optimizer.state_dtype", "bf16"],
}


def train(options: argparse.Namespace, variant: str, seed: int, folder: str) -> float:
    """The validation loss at the end of one run."""
    name = f"{variant}-{seed}"
    arguments = {
        "config": options.config,
        "run.dir": folder,
        "run.name": name,
        "run.seed": seed,
        "run.steps": options.steps,
        "run.eval_every": 0,
        "run.save_every": 0,
        "optimizer.lr_decay_steps": options.steps,
        "parallel.engine": "fsdp",
        "parallel.precision": options.precision,
    }
    given = [part for key, value in arguments.items() for part in (f"--{key}", str(value))]
    command = [sys.executable, str(ROOT / "launcher/pretrain.py"), *given, *VARIANTS[variant], *options.more]
    result = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
    lines = [json.loads(line) for line in (Path(folder) / name / "metrics.jsonl").read_text().splitlines()]
    return next(line["loss"] for line in reversed(lines) if line["kind"] == "eval")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--variant", choices=VARIANTS, nargs="+", default=list(VARIANTS))
    parser.add_argument("more", nargs="*", help="further options of pretrain.py, after --")
    options = parser.parse_args()
    losses: dict[str, list[float]] = {}
    print(f"{options.steps} steps, {options.precision}; validation loss (nats a token)\n")
    print("| variant | " + " | ".join(f"seed {seed}" for seed in options.seeds) + " | mean | difference from plain |")
    print("|---|" + "---|" * (len(options.seeds) + 2))
    with tempfile.TemporaryDirectory() as folder:
        for variant in dict.fromkeys(["plain", *options.variant]):
            losses[variant] = [train(options, variant, seed, folder) for seed in options.seeds]
            apart = [one - other for one, other in zip(losses[variant], losses["plain"], strict=True)]
            spread = f" +- {statistics.stdev(apart):.4f}" if len(apart) > 1 else ""
            cells = [f"{loss:.4f}" for loss in (*losses[variant], statistics.mean(losses[variant]))]
            print(f"| {variant} | {' | '.join(cells)} | {statistics.mean(apart):+.4f}{spread} |", flush=True)


if __name__ == "__main__":
    main()
