"""A pretraining run, from its configuration to its exit code: open, build, resume, train."""

import os
from dataclasses import asdict

from ingot.data.corpus.quarantine import Quarantine
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.runtime.exit_codes import DONE, bad_input
from ingot.launcher.runtime.peer_watchdog import Lifeline
from ingot.launcher.runtime.run_lock import lock
from ingot.launcher.training import build
from ingot.launcher.training.bad_data import DamageWatch
from ingot.launcher.training.resume import check_same_data, choose_start, data_stamp, resume
from ingot.launcher.training.setup import about_checkpoints, folder_of, open_run, start_mesh
from ingot.launcher.training.trainer import Trainer
from ingot.launcher.training.validation import validation_scores
from ingot.model.costs.flops import flops_per_token, summary
from ingot.parallel import mesh as meshes


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
    folder = folder_of(config)
    with bad_input():
        held = lock(folder) if folder.is_dir() and int(os.environ.get("RANK", 0)) == 0 else None
        cache, quarantine = build.open_cache(config), Quarantine()
        corpora = build.open_corpora(config.data.train, "train", config, cache, quarantine)
        held_out = build.open_corpora(config.data.validation, "validation", config, cache, quarantine)
        tokenizer = build.open_tokenizer(config, corpora + held_out)
        starts = choose_start(config.run.resume, folder)
        mesh = start_mesh(config, lifeline)
        reader = build.training_reader(config, corpora, tokenizer, mesh)
        readers = build.validation_readers(config, held_out, tokenizer, mesh)
        engine = build.engine_of(config, mesh, tokenizer)
        stamp = data_stamp(config, corpora)
        check_same_data(stamp)
        progress, notes = resume(
            engine,
            starts,
            stamp,
            asdict(config.model),
            allow_changed=config.data.allow_changed,
            init_from=config.run.init_from,
        )

    metrics, held = open_run(config, tokenizer, mesh, held, progress, [summary(config.model)], notes)
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
        about=about_checkpoints(config, stamp, tokenizer, mesh),
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
