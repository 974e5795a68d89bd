"""A pretraining run, from its configuration to its exit code."""

from dataclasses import dataclass

import numpy as np
import torch

from ingot.data.corpus.quarantine import Quarantine
from ingot.data.corpus.shards import Corpus
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.runtime.exit_codes import bad_input
from ingot.launcher.training import build
from ingot.launcher.training.callbacks.callback import Callback, Callbacks
from ingot.launcher.training.common_values import start_files
from ingot.launcher.training.job import Job, RunContext
from ingot.launcher.training.resume import checkpoints_to_try, data_stamp
from ingot.launcher.training.run import run
from ingot.launcher.training.run_length import with_steps
from ingot.launcher.training.setup import RunLock, rank_group, run_folder, start_mesh
from ingot.launcher.training.validation import validation_scores
from ingot.model.costs.flops import flops_per_token, summary
from ingot.model.huggingface.families.registry import export_note
from ingot.model.tensor_plan import tensor_plan
from ingot.parallel.engines.engine import Batch
from ingot.parallel.mesh import Mesh


@dataclass(frozen=True)
class OpenData:
    """The corpora of a run, and their tokenizer."""

    train: list[Corpus]
    validation: list[Corpus]
    tokenizer: Tokenizer
    quarantine: Quarantine


def pretrain(config: TrainConfig) -> int:
    """Pretrains, and returns the exit code. Each rank calls it.

    Raises:
        BadInput: there is a mistake that the user can correct. The folder of the run is unchanged.
    """
    with rank_group(config) as watchdog:
        with bad_input():  # first the checks that need no other rank
            run_lock = RunLock(run_folder(config))
            data = open_data(config)
            config = with_steps(config, data.train)
            mesh, config = start_mesh(config, watchdog, files_of(config, data))
        return run(config, mesh, run_lock, lambda: make_job(config, mesh, data)).code


def open_data(config: TrainConfig) -> OpenData:
    """Opens the corpora.

    Raises:
        ValueError, OSError: a corpus is missing or damaged, or the corpora do not fit each other or the model.
    """
    cache, quarantine = build.open_cache(config), Quarantine()
    train = build.open_corpora(config.data.train, "train", config, cache, quarantine)
    validation = build.open_corpora(config.data.validation, "validation", config, cache, quarantine)
    return OpenData(train, validation, build.open_tokenizer(config, train + validation), quarantine)


def files_of(config: TrainConfig, data: OpenData) -> dict[str, str]:
    """What identifies the files of a run, by name.

    Raises:
        ValueError: the checkpoint to resume from is missing, or there is one and there should be none.
    """
    found = {"the tokenizer": data.tokenizer.sha256[:16]}
    for sources, corpora in ((config.data.train, data.train), (config.data.validation, data.validation)):
        found |= {
            f"the {corpus.split} split of {source.path}": corpus.fingerprint[:16]
            for source, corpus in zip(sources, corpora, strict=True)
        }
    candidates = checkpoints_to_try(config.run.resume, run_folder(config))
    return found | start_files(candidates, config.run.init_from, config.distillation.teacher)


def make_job(config: TrainConfig, mesh: Mesh, data: OpenData) -> Job:
    """Builds the model, engine and readers of a pretraining run. Each rank must call it.

    Raises:
        ValueError: the options do not fit each other or the data.
    """
    readers = build.validation_readers(config, data.validation, data.tokenizer, mesh)
    engine = build.build_pretraining_engine(config, mesh, data.tokenizer)

    def evaluate() -> dict:
        return validation_scores(engine, readers, max_samples=config.run.eval_samples, causal=config.model.causal)

    return Job(
        config=config,
        tokenizer=data.tokenizer,
        model=config.model,
        engine=engine,
        reader=build.training_reader(config, data.train, data.tokenizer, mesh),
        batch_sizes=build.batch_sizes(config.batch),
        data_stamp=data_stamp(config, data.train),
        flops_per_token=flops_per_token(config.model, config.data.sequence_length),
        evaluate=evaluate if readers else None,
        validation_readers=readers,
        loss_inputs=sentence_pair_weight,
        callbacks=lambda context: [FinalMessage(context)],
        quarantine=data.quarantine,
        max_bad_fraction=config.data.max_bad_fraction,
        allow_changed=config.data.allow_changed,
        init_from=config.run.init_from,
        is_packed=config.data.intra_document_masking,
        messages=[
            summary(config.model),
            export_note(config.model),
            *build.float8_messages(config.parallel, engine.module, tensor_plan(config.model)),
        ],
    )


def sentence_pair_weight(micro_batch: dict[str, np.ndarray], num_targets: int, num_sequences: int) -> Batch:
    """The weight of a sentence pair in the sum of losses; nothing without sentence pairs.

    Each sequence is one pair. The loss is the mean over the targets plus the mean over the pairs, as in BERT (Devlin et
    al. 2019). The engine divides the sum of all losses by the number of targets, so a pair is weighted by
    `num_targets / num_sequences`.

    Args:
        num_targets, num_sequences: of the whole step, over all ranks.
    """
    if "pair_labels" not in micro_batch:
        return {}
    return {"pair_weight": torch.tensor(num_targets / num_sequences)}


class FinalMessage(Callback):
    """Reports at the end how far the validation loss is below the unigram entropy."""

    def __init__(self, context: RunContext):
        self._callbacks: Callbacks = context.callbacks

    def on_train_end(self, step: int, scores: dict[str, float]) -> None:
        if not scores:
            return
        loss, entropy = scores["loss"], scores["unigram_entropy"]
        below = f"{abs(1 - loss / entropy):.1%} {'below' if loss < entropy else 'above'}"
        self._callbacks.message(
            f"done: validation loss {loss:.4f}, {below} the unigram entropy {entropy:.4f} of the same tokens"
        )
