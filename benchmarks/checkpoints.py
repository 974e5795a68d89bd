"""Saving and loading, compared with DeepSpeed (with ds_to_universal) and torch's distributed checkpoints.

python benchmarks/checkpoints.py               # 51 million parameters with AdamW's moments, 2 ranks, 3 repeats

Seconds are those of the slowest rank, medians of the repeats; the sides take turns. Ingot syncs what it writes, and
checks the digest of each tensor when it loads. DeepSpeed saves on 2 ranks at ZeRO-1, converts, and loads on one; Ingot
does the same without a conversion. Extra memory is the peak of a rank above what it held before, printed with its own
part of the state. `waiting` is how long training waits for a save, printed with a copy of the same bytes in host
memory, and `step during a save` is how fast training is while one is written.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _clone  # noqa: F401

LAYERS, WIDTH, VOCABULARY, LENGTH = 8, 640, 16384, 128


def config_of(engine: str, ranks: int):
    from ingot.launcher.config.parallel import Parallel
    from ingot.launcher.config.pretrain import Batch, Data, TrainConfig
    from ingot.model.config import ModelConfig

    return TrainConfig(
        model=ModelConfig(
            num_hidden_layers=LAYERS,
            hidden_size=WIDTH,
            num_attention_heads=10,
            vocab_size=VOCABULARY,
            max_position_embeddings=LENGTH,
        ),
        data=Data(sequence_length=LENGTH),
        batch=Batch(global_size=4, micro_size=4 // ranks),
        parallel=Parallel(engine=engine, precision="bf16"),
    )


def build(engine: str):
    """An Ingot engine after a step, and its mesh."""
    from ingot.launcher.training.build import build_pretraining_engine
    from ingot.parallel import mesh as meshes

    mesh = meshes.start("cpu")
    built = build_pretraining_engine(config_of(engine, mesh.world_size), mesh)
    train(built, 1)
    return built, mesh


def train(engine, steps: int) -> list[float]:
    import torch

    ids = torch.randint(0, VOCABULARY, (4 // engine.mesh.num_data, LENGTH))
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        engine.forward_backward(
            {"input_ids_BT": ids, "labels_BT": ids}, ids.numel() * engine.mesh.num_data, is_last=True
        )
        engine.step(1e-4)
        seconds.append(time.perf_counter() - start)
    return seconds


class Watch:
    """Seconds and peak extra memory of a part, on the slowest and the largest rank."""

    def __init__(self, found: dict, name: str):
        self.found, self.name = found, name

    def __enter__(self):
        import torch.distributed as dist

        dist.barrier()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        self.before, self.start = _memory("VmRSS"), time.perf_counter()

    def __exit__(self, *error):
        import torch
        import torch.distributed as dist

        worst = torch.tensor([time.perf_counter() - self.start, _memory("VmHWM") - self.before], dtype=torch.float64)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        self.found[self.name] = worst[0].item()
        self.found[f"{self.name} extra MB"] = worst[1].item() / 1e6


def _memory(key: str) -> int:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key)]
    return int(line.split()[1]) * 1024


def ingot_save(folder: Path, engine: str) -> dict:
    from ingot.parallel import checkpoint

    built, _ = build(engine)
    found = {"own MB": sum(s.tensor.numel() * s.tensor.element_size() for s in built.shards()) / 1e6}
    with Watch(found, "save"):
        checkpoint.save(folder / "ingot", built.shards(), step=1, metadata={}, keep=0)
    found["disk MB"] = _size(folder / "ingot")
    return found


def ingot_load(folder: Path, engine: str) -> dict:
    from ingot.parallel import checkpoint

    built, _ = build(engine)
    found, reading = {}, checkpoint.ReadCounts()
    with Watch(found, "load"):
        checkpoint.load(folder / "ingot/step-00000001", built.shards(), counts=reading)
        built.sync_from_shards(1)
    return {**found, "read / needed": reading.read / reading.needed}


def deepspeed_engine(universal: bool):
    import deepspeed

    from ingot.model.initialization import initialize
    from ingot.model.transformer import LanguageModel
    from ingot.parallel import mesh as meshes
    from ingot.parallel.optimizer import adamw, matrices, parameter_groups

    mesh = meshes.start("cpu")
    config = config_of("zero", mesh.world_size)
    module = LanguageModel(config.model)
    initialize(module, 0)
    groups = parameter_groups(module, 0.1, matrices(module))
    settings = {
        "train_micro_batch_size_per_gpu": 4 // mesh.world_size,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1},
        "checkpoint": {"load_universal": universal},
    }
    optimizer = adamw(groups, learning_rate=1e-4, betas=(0.9, 0.95), eps=1e-8)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)
    import torch

    ids = torch.randint(0, VOCABULARY, (4 // mesh.world_size, LENGTH))
    engine.backward(engine(input_ids_BT=ids, labels_BT=ids) / ids.numel())
    engine.step()
    return engine


def deepspeed_save(folder: Path, _: str) -> dict:
    engine, found = deepspeed_engine(False), {}
    with Watch(found, "save"):
        engine.save_checkpoint(str(folder / "deepspeed"), tag="step1")
    found["disk MB"] = _size(folder / "deepspeed")
    return found


def deepspeed_load(folder: Path, _: str) -> dict:
    engine, found = deepspeed_engine(True), {}
    with Watch(found, "load"):
        engine.load_checkpoint(str(folder / "deepspeed"), tag="universal")
    found["disk MB"] = _size(folder / "deepspeed/universal")
    return found


def convert(folder: Path) -> tuple[float, float]:
    """Seconds and peak MB of ds_to_universal."""
    tool = "from deepspeed.checkpoint.ds_to_universal import main, parse_arguments; main(parse_arguments())"
    line = [sys.executable, "-c", tool, "--input_folder", str(folder / "deepspeed/step1"), "--output_folder"]
    line += [str(folder / "deepspeed/universal"), "--inject_missing_state", "--num_extract_workers", "2"]
    line += ["--num_merge_workers", "2"]
    start = time.perf_counter()
    result = subprocess.run(["/usr/bin/time", "-f", "%M", *line], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"ds_to_universal failed:\n{result.stderr[-3000:]}")
    return time.perf_counter() - start, int(result.stderr.strip().splitlines()[-1]) / 1e3


def dcp_both(folder: Path, _: str) -> dict:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    built, found = build("fsdp")[0], {}
    with Watch(found, "save"):
        model, optimizer = get_state_dict(built.module, built.optimizer)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=str(folder / "dcp"))
    found["disk MB"] = _size(folder / "dcp")
    with Watch(found, "load"):
        model, optimizer = get_state_dict(built.module, built.optimizer)
        state = {"model": model, "optimizer": optimizer}
        dcp.load(state, checkpoint_id=str(folder / "dcp"))
        set_state_dict(
            built.module, built.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
    return found


def saving_during_training(folder: Path, engine: str) -> dict:
    import torch

    from ingot.parallel.checkpoint import Saver
    from ingot.parallel.mesh import sum_over_ranks

    built, _ = build(engine)
    saver = Saver(folder / "during", keep=1)
    found: dict = {}
    saver.begin(built.shards(), step=1, metadata={})  # the first one makes the buffers
    saver.finish()
    sources = [shard.tensor.detach() for shard in built.shards()]
    targets = [torch.ones_like(tensor) for tensor in sources]
    copies, waits = [], []
    for step in range(2, 9):  # in turn, on all ranks at once, each after a step of training as in a run
        train(built, 1)
        sum_over_ranks([0])
        start = time.perf_counter()
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
        copies.append(time.perf_counter() - start)
        train(built, 1)
        sum_over_ranks([0])
        waits.append(saver.begin(built.shards(), step=step, metadata={}))
        saver.finish()
    found |= {"host copy": statistics.median(copies), "waiting": statistics.median(waits)}
    del sources, targets
    train(built, 2)
    quiet = statistics.mean(train(built, 8))
    saver.begin(built.shards(), step=9, metadata={})
    busy, steps = 0.0, 0
    while sum_over_ranks([saver._save.thread.is_alive()])[0]:  # steps are collective: no rank ends before the others
        busy += train(built, 1)[0]
        steps += 1
    saver.finish()
    return {
        **found,
        "undisturbed step": quiet,
        "step during a save": busy / max(1, steps),
        "steps during a save": steps,
    }


def _size(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


PARTS = {
    "ingot save": ingot_save,
    "ingot load": ingot_load,
    "deepspeed save": deepspeed_save,
    "deepspeed load": deepspeed_load,
    "dcp": dcp_both,
    "during": saving_during_training,
}


def run(part: str, ranks: int, folder: Path, engine: str = "zero") -> dict:
    """A part in processes of its own, and what it found."""
    line = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", str(ranks), __file__]
    line += ["--part", part, "--folder", str(folder), "--engine", engine]
    result = subprocess.run(line, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{part} failed:\n{result.stderr[-3000:]}")
    return json.loads((folder / "found.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", help="for the processes that this command starts")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--engine", default="zero")
    arguments = parser.parse_args()
    if arguments.part:
        found = PARTS[arguments.part](arguments.folder, arguments.engine)
        if int(os.environ["RANK"]) == 0:
            (arguments.folder / "found.json").write_text(json.dumps(found))
        from ingot.launcher.runtime.exit_codes import exit_process
        from ingot.parallel import mesh as meshes

        meshes.stop()
        exit_process(0)
    rows: dict[str, list[dict]] = {}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as name:
            for title, found in once(Path(name)).items():
                rows.setdefault(title, []).append(found)
    for title, found in rows.items():
        print(title)
        for key in found[0]:
            values = [each[key] for each in found]
            print(f"  {key:28}{statistics.median(values):10.3f}   {min(values):.3f} to {max(values):.3f}")


def once(folder: Path) -> dict[str, dict]:
    found = {}
    ours = run("ingot save", 2, folder) | run("ingot load", 1, folder)
    theirs = run("deepspeed save", 2, folder)
    seconds, peak = convert(folder)
    theirs |= {"convert": seconds, "convert peak MB": peak}
    load = run("deepspeed load", 1, folder)
    theirs |= load | {"disk MB": theirs["disk MB"] + load["disk MB"]}
    ours["end to end"] = ours["save"] + ours["load"]
    theirs["end to end"] = theirs["save"] + theirs["convert"] + theirs["load"]
    ours["times faster"] = theirs["end to end"] / ours["end to end"]
    found["Ingot, ZeRO-1: saved on 2 ranks, loaded on 1"] = ours
    found["DeepSpeed, ZeRO-1: saved on 2 ranks, converted, loaded on 1"] = theirs
    shutil.rmtree(folder / "ingot")
    fsdp = run("ingot save", 2, folder, "fsdp") | run("ingot load", 2, folder, "fsdp")
    torch_own = run("dcp", 2, folder)
    fsdp |= {f"{part}, times faster": torch_own[part] / fsdp[part] for part in ("save", "load")}
    found["Ingot, FSDP2 on 2 ranks"] = fsdp
    found["torch DCP, FSDP2 on 2 ranks"] = torch_own
    found["Ingot during training, FSDP2 on 2 ranks"] = run("during", 2, folder, "fsdp")
    return found


if __name__ == "__main__":
    main()
