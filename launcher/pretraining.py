"""A pretraining run, from its configuration to its exit code: open, build, resume, train."""

import os
import shutil
from dataclasses import asdict
from pathlib import Path

from data.quarantine import Quarantine
from data.tokenizer import Tokenizer
from launcher import build, cli
from launcher.config import TrainConfig
from launcher.damage import DamageWatch
from launcher.evaluation import validation_scores
from launcher.exits import DONE, bad_input
from launcher.finetune_config import FinetuneConfig
from launcher.lifeline import Lifeline
from launcher.metrics import Metrics
from launcher.resume import check_same_data, choose_start, data_stamp, resume
from launcher.run_lock import lock
from launcher.trainer import Trainer
from model.flops import flops_per_token, summary
from parallel import mesh as meshes


def pretrain(config: TrainConfig) -> int:
    """Runs, and returns the exit code. Each rank calls it.

    Raises:
        BadInput: anything that the user can mend, before the run folder is touched.
    """
    try:
        with Lifeline() as lifeline:
            return _pretrain(config, lifeline)
    finally:
        meshes.stop()  # threads of a process group that is left alone can abort the process as it exits


def _pretrain(config: TrainConfig, lifeline: Lifeline) -> int:
    folder = Path(config.run.dir) / config.run.name
    with bad_input():
        held = lock(folder) if folder.is_dir() and int(os.environ.get("RANK", 0)) == 0 else None
        cache, quarantine = build.open_cache(config), Quarantine()
        corpora = build.open_corpora(config.data.train, "train", config, cache, quarantine)
        held_out = build.open_corpora(config.data.validation, "validation", config, cache, quarantine)
        tokenizer = build.open_tokenizer(config, corpora + held_out)
        starts = choose_start(config.run.resume, folder)
        parallel = config.parallel
        mesh = meshes.start(
            config.run.device,
            parallel.timeout_seconds,
            parallel.tensor,
            parallel.data_shard,
            parallel.rendezvous_seconds,
        )
        lifeline.tie(mesh.rank, mesh.world_size)
        reader = build.training_reader(config, corpora, tokenizer, mesh)
        readers = build.validation_readers(config, held_out, tokenizer, mesh)
        engine = build.engine_of(config, mesh)
        stamp = data_stamp(config, corpora)
        check_same_data(stamp)
        progress, notes = resume(
            engine,
            starts,
            stamp,
            asdict(config.model),
            allow_changed=config.data.allow_changed,
            weights_from=config.run.weights_from,
        )

    if mesh.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        with bad_input():
            held = held or lock(folder)
        write_run_folder(folder, config, tokenizer)
    metrics = Metrics(folder if mesh.is_main else None, steps=config.run.steps, step=progress.step)
    metrics.say(summary(config.model))
    metrics.say(f"{engine_name(config)} on {mesh.describe()}")
    for note in notes:
        metrics.event(progress.step, note)
    metrics.event(progress.step, "start", steps=config.run.steps, samples=progress.cursor, tokens=progress.tokens)

    watch = DamageWatch(quarantine, metrics, folder, max_bad_fraction=config.data.max_bad_fraction)
    watch.start(progress.quarantine)

    def evaluate() -> dict:
        scores = validation_scores(engine, readers, max_samples=config.run.eval_samples, causal=config.model.causal)
        watch.check([reader.error for reader in readers], progress.step)
        return scores

    trainer = Trainer(
        config,
        engine,
        reader,
        metrics,
        folder,
        progress=progress,
        evaluate=evaluate if readers else None,
        watch=watch,
        flops_per_token=flops_per_token(config.model, config.data.sequence_length),
        about={
            "data": stamp,
            "tokenizer_sha256": tokenizer.sha256,
            "layout": {
                "engine": engine_name(config),
                "data_replicate": mesh.num_data // mesh.shard,
                "data_shard": mesh.shard,
                "tensor": mesh.tensor,
            },
            "config": config.to_dict(),
        },
    )
    try:
        code = trainer.run()
        if code == DONE and trainer.scores:
            loss, entropy = trainer.scores["loss"], trainer.scores["unigram_entropy"]
            below = f"{abs(1 - loss / entropy):.1%} {'below' if loss < entropy else 'above'}"
            metrics.say(
                f"done: validation loss {loss:.4f}, {below} the unigram entropy {entropy:.4f} of the same tokens"
            )
        return code
    finally:
        metrics.close()
        if held is not None:
            held.close()
        for each in (reader, *readers):
            each.close()


def engine_name(config: TrainConfig | FinetuneConfig) -> str:
    name = f"DeepSpeed ZeRO-{config.parallel.zero_stage}" if config.parallel.engine == "zero" else "torch"
    return f"{name}, {config.parallel.precision}"


def write_run_folder(folder: Path, config: TrainConfig | FinetuneConfig, tokenizer: Tokenizer) -> None:
    """config.yaml, complete, and the tokenizer: with a checkpoint this is all that generating text needs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(cli.to_yaml(config))
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    tokenizer.save(folder / "tokenizer")
