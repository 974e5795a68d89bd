"""What the loop costs: a step of Ingot, compared with forward, backward, clipping and optimizer step in a plain script.

python benchmarks/overhead.py             # one process, and two: replicas, ZeRO-1 and FSDP2, compared with
                                          # DistributedDataParallel, DeepSpeed and FSDP2 in plain scripts

The last column compares a side with the plain script that computes the same. bf16 where the processor has instructions
for it, else fp32: there products in bf16 are so slow that they would hide what the loop costs.

Each side is a process group of its own, started by torchrun, on the same sequences: Ingot reads them from a corpus, the
others have them in memory. Whole runs of the sides take turns. The figure of a run is the median of its steps after the
first ones, and the figure of a side is the median of its runs.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import _clone  # noqa: F401

WARM = 4
SIDES = {
    1: {"bare": "bare", "ingot fsdp": "bare", "ingot zero-1": "bare"},
    2: {
        "bare DistributedDataParallel": "bare DistributedDataParallel",
        "bare DeepSpeed ZeRO-1": "bare DistributedDataParallel",
        "bare FSDP2": "bare DistributedDataParallel",
        "ingot replicas": "bare DistributedDataParallel",
        "ingot zero-1": "bare DeepSpeed ZeRO-1",
        "ingot fsdp": "bare FSDP2",
    },
}
"""By number of ranks: the sides, and what each is compared with."""


def config_of(arguments: argparse.Namespace, side: str, folder: Path):
    from ingot.launcher.config.optimizer import Optimizer
    from ingot.launcher.config.parallel import Parallel
    from ingot.launcher.config.pretrain import Batch, CorpusSource, Data, Run, TrainConfig
    from ingot.model.config import ModelConfig

    return TrainConfig(
        run=Run(
            dir=str(folder),
            name=side.replace(" ", "-"),
            device="cpu",
            steps=arguments.steps,
            log_every=1,
            save_every=0,
            eval_every=0,
            resume="never",
        ),
        model=ModelConfig(
            vocab_size=2048,
            num_hidden_layers=6,
            num_attention_heads=4,
            hidden_size=arguments.width,
            max_position_embeddings=arguments.length,
        ),
        data=Data(train=[CorpusSource(str(folder / "corpus"))], sequence_length=arguments.length),
        batch=Batch(global_size=arguments.batch, micro_size=arguments.batch // 2),
        optimizer=Optimizer(warmup_steps=2),
        parallel=Parallel(
            engine="zero" if "zero" in side else "fsdp",
            data_shard=1 if "replicas" in side else None,
            precision=arguments.precision,
        ),
    )


def run_ingot(arguments: argparse.Namespace, side: str, folder: Path) -> list[float]:
    """Seconds of each step, as the run reports them: reading, both passes, update, and reporting."""
    from ingot.launcher.training.pretrain_run import pretrain

    config = config_of(arguments, side, folder)
    run = folder / config.run.name
    pretrain(config)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step_seconds"] for line in lines if line["kind"] == "train"]


def run_bare(arguments: argparse.Namespace, side: str, folder: Path) -> list[float]:
    """The textbook loop over batches in memory."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from ingot.data.corpus.quarantine import Quarantine
    from ingot.launcher.training import build
    from ingot.launcher.training.inputs import to_device
    from ingot.model.initialization import initialize
    from ingot.model.transformer import LanguageModel
    from ingot.parallel import mesh as meshes
    from ingot.parallel.engines.bf16 import Bf16Compute
    from ingot.parallel.optimizer import adamw, matrices, parameter_groups

    config = config_of(arguments, side, folder)
    mesh = meshes.start("cpu")
    corpora = build.open_corpora(config.data.train, "train", config, None, Quarantine())
    reader = build.training_reader(config, corpora, build.open_tokenizer(config, corpora), mesh)
    steps = [
        [to_device(micro, mesh.device) for micro in step.micro_batches]
        for step in reader.steps(0, arguments.steps * arguments.batch)
    ]
    targets = arguments.batch * arguments.length / mesh.num_data
    module = LanguageModel(config.model)
    initialize(module, config.run.seed)
    module.train()
    groups = parameter_groups(module, 0.1, matrices(module))
    optimizer = adamw(groups, learning_rate=6e-4, betas=(0.9, 0.95), eps=1e-8)
    low = arguments.precision == "bf16"
    if "DeepSpeed" in side:
        train_step = deepspeed_step(module, optimizer, config, mesh, targets)
    elif "FSDP2" in side:
        train_step = fsdp_step(module, config, low, targets)
    else:
        compute = Bf16Compute(module) if low else module
        wrapped = DistributedDataParallel(compute, gradient_as_bucket_view=True) if mesh.num_data > 1 else compute

        def train_step(micro_batches: list) -> None:
            for micro in micro_batches[:-1]:
                with wrapped.no_sync() if mesh.num_data > 1 else torch.enable_grad():
                    (wrapped(**micro) / targets).backward()
            (wrapped(**micro_batches[-1]) / targets).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    seconds = []
    for micro_batches in steps:
        start = time.perf_counter()
        train_step(micro_batches)
        seconds.append(time.perf_counter() - start)
    reader.close()
    meshes.stop()
    return seconds


def deepspeed_step(module, optimizer, config, mesh, targets: float):
    import deepspeed

    count = config.batch.global_size // mesh.num_data // config.batch.micro_size
    settings = {
        "train_batch_size": config.batch.global_size,
        "train_micro_batch_size_per_gpu": config.batch.micro_size,
        "gradient_accumulation_steps": count,
        "bf16": {"enabled": config.parallel.precision == "bf16"},
        "zero_optimization": {"stage": 1},
        "gradient_clipping": 1.0,
    }
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)

    def train_step(micro_batches: list) -> None:
        for micro in micro_batches:
            engine.backward(engine(**micro) * (count / targets))
            engine.step()

    return train_step


def fsdp_step(module, config, low: bool, targets: float):
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from ingot.parallel.optimizer import adamw, matrices, parameter_groups

    decaying = matrices(module)
    policy = MixedPrecisionPolicy(torch.bfloat16 if low else torch.float32, reduce_dtype=torch.float32)
    for part in (*module.blocks, module):
        fully_shard(part, mp_policy=policy)
    optimizer = adamw(parameter_groups(module, 0.1, decaying), learning_rate=6e-4, betas=(0.9, 0.95), eps=1e-8)

    def train_step(micro_batches: list) -> None:
        for micro in micro_batches:
            (module(**micro) / targets).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return train_step


def prepare_corpus(folder: Path) -> None:
    from ingot.launcher.config.prepare import PrepareOptions, TokenizerOptions
    from ingot.launcher.preparation.prepare import prepare

    source = Path(sysconfig.get_paths()["stdlib"])
    prepare(
        PrepareOptions(
            input=[str(source / name) for name in ("json", "email", "logging", "asyncio", "unittest", "xml")],
            output=str(folder / "corpus"),
            include=["*.py"],
            tokenizer=TokenizerOptions(vocab_size=2048),
            workers=1,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--precision", choices=["bf16", "fp32"])
    parser.add_argument("--side", help="for the processes that this command starts")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.precision is None:
        from ingot.parallel.torch_compat import cpu_has_bf16_instructions

        arguments.precision = "bf16" if cpu_has_bf16_instructions() else "fp32"
    if arguments.side:
        work = run_ingot if arguments.side.startswith("ingot") else run_bare
        seconds = work(arguments, arguments.side, arguments.folder)
        if int(os.environ.get("RANK", 0)) == 0:
            (arguments.folder / "seconds.json").write_text(json.dumps(seconds[WARM:]))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare_corpus(Path(folder))
        for ranks in arguments.ranks:
            compare(arguments, ranks, Path(folder))


def compare(arguments: argparse.Namespace, ranks: int, folder: Path) -> None:
    found: dict[str, list[float]] = {side: [] for side in SIDES[ranks]}
    for _ in range(arguments.repeats):
        for side, medians in found.items():
            line = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", str(ranks)]
            line = [*line, __file__, "--side", side, "--folder", str(folder), "--steps", str(arguments.steps)]
            for name in ("width", "length", "batch", "precision"):
                line += [f"--{name}", str(getattr(arguments, name))]
            shutil.rmtree(folder / side.replace(" ", "-"), ignore_errors=True)
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            medians.append(statistics.median(json.loads((folder / "seconds.json").read_text())))
    middles = {side: statistics.median(medians) for side, medians in found.items()}
    first = next(iter(middles.values()))
    print(
        f"{ranks} process(es), {arguments.precision}, seconds a step: median of {arguments.repeats} runs, their range, "
        f"relative to the first, relative to its plain script"
    )
    for side, medians in found.items():
        span = f"{min(medians):.4f} to {max(medians):.4f}"
        plain = middles[side] / middles[SIDES[ranks][side]]
        print(f"  {side:30}{middles[side]:9.4f}  {span:20}{middles[side] / first:7.3f}{plain:7.3f}", flush=True)


if __name__ == "__main__":
    main()
