"""Speed on one GPU: training, loss, attention and generation, beside transformers, in at most nine minutes.

    python benchmarks/gpu.py                      # everything that fits into the time; also: make gpu
    python benchmarks/gpu.py --only gpt2 loss     # some sections
    python benchmarks/gpu.py --minutes 20         # more time for each section
    python benchmarks/gpu.py --tiny               # every branch, in small, on a CPU: only a test of the script

torch is enough; DeepSpeed, transformers, torchao and FlashAttention 3 are measured where they are installed. Each section
runs in a process of its own with its share of the time, so one that fails, hangs or breaks the device costs only itself.
What was left out is said. Every line is also kept in a JSON file with versions, device and commit.

tokens/s is the median over steps. MFU is by the convention of model/costs/flops.py; "computed" is the share of the peak by
what is really needed (causal half, documents and rows without a target deducted). GiB is the peak of what torch
allocated. Training: fp32 master weights, bf16 computation, AdamW, clipping, gradients accumulated over 4 micro-batches;
Ingot trains on packed documents (a mean of a third of the length), transformers on unpacked rows, which are faster.
"""  # noqa: E501  # the commands

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _clone
import torch
from gpu_sections import generation, operators, training
from gpu_sections.bench import Bench

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Section:
    """What is measured together, and its share of the time."""

    share: float
    run: Callable[[Bench], None]


SECTIONS = {
    "device": Section(0.05, operators.device),
    "loss": Section(0.09, operators.loss),
    "attention": Section(0.09, operators.attention),
    "gpt2": Section(0.21, training.gpt2),
    "llama": Section(0.22, training.llama),
    "bert": Section(0.12, training.bert),
    "engines": Section(0.14, training.engines),
    "generation": Section(0.08, generation.generation),
}


def versions(tiny: bool) -> dict[str, Any]:
    from importlib import metadata

    packages = ("torch", "triton", "deepspeed", "transformers", "torchao", "flash-attn-3", "flash-attn")
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if not tiny:
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found["cudnn"] = torch.backends.cudnn.version()
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return found | {"commit": commit or None, "date": time.strftime("%Y-%m-%d %H:%M")}


def run_section(name: str, seconds: float, tiny: bool, results: Path) -> None:
    """One section in this process."""
    bench = Bench(name, seconds, tiny, results)
    try:
        SECTIONS[name].run(bench)
    except Exception as error:  # a section must not end the others
        traceback.print_exc(limit=3)
        bench.say(name, failed=f"{type(error).__name__}: {error}"[:300])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=8.7, help="for all sections together; start-up included")
    parser.add_argument("--tiny", action="store_true", help="every branch in small on the CPU, not compiled")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu.json", help="JSON with the results")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--seconds", type=float, default=math.inf, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        print("torch sees no CUDA device here; --tiny runs every branch on the CPU", file=sys.stderr)
        return 2
    if arguments.section:
        run_section(arguments.section, arguments.seconds, arguments.tiny, arguments.results)
        return 0
    start = time.monotonic()
    found = versions(arguments.tiny)
    print(json.dumps(found), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        results.touch()
        if arguments.tiny:
            torch.compiler.set_stance("force_eager")  # compiling takes minutes on a CPU, and is not what is tested
        for place, name in enumerate(arguments.only):
            left = arguments.minutes * 60 - (time.monotonic() - start)
            later = sum(SECTIONS[other].share for other in arguments.only[place:])
            seconds = left * SECTIONS[name].share / later
            print(f"\n{name} ({seconds:.0f} s)", flush=True)
            if arguments.tiny:
                run_section(name, seconds, True, results)
            else:
                run_apart(name, seconds, results)
        lines = [json.loads(line) for line in results.read_text().splitlines()]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"versions": found, "results": lines}, indent=1) + "\n")
    failed = sum("failed" in line for line in lines)
    print(f"\n{time.monotonic() - start:.0f} s, {len(lines)} lines, {failed} failed; kept in {arguments.output}")
    return 0


def run_apart(name: str, seconds: float, results: Path) -> None:
    """One section in a process of its own, which is ended when its time is over."""
    command = [sys.executable, __file__, "--section", name, "--seconds", str(seconds * 0.9), "--results", str(results)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        code = subprocess.run(command, timeout=seconds, check=False, env=environment).returncode
        problem = f"the process ended with {code}" if code else None
    except subprocess.TimeoutExpired:
        problem = f"its {seconds:.0f} s were over"
    if problem:
        print(f"  {name}: {problem}", flush=True)
        with results.open("a") as file:
            file.write(json.dumps({"section": name, "name": name, "failed": problem}) + "\n")


if __name__ == "__main__":
    assert _clone
    sys.exit(main())
