"""Where a run starts: at step 0 or from a checkpoint, and whether its data are still those of the checkpoint."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from ingot.data.corpus.shards import Corpus
from ingot.launcher.config.aliases import modernize_manifest
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.training.progress import Progress
from ingot.model.config import ModelConfig
from ingot.model.huggingface.load import Source
from ingot.model.huggingface.mapping.family import computing_fields
from ingot.parallel import checkpoint
from ingot.parallel.checkpoint import CheckpointError, CheckpointMismatch
from ingot.parallel.engines.engine import Engine
from ingot.parallel.mesh import sum_over_ranks


def choose_start(resume: str, folder: Path) -> list[Path]:
    """The checkpoints to try, in this order; an empty list means a start at step 0.

    Args:
        resume: `auto`, `never`, or the path of a run or checkpoint.
        folder: the run's folder.

    Raises:
        ValueError: `never` in a folder with checkpoints, or a path without any.
    """
    own = checkpoint.committed(folder / "checkpoints")
    if resume == "auto":
        return own
    if resume == "never":
        if own:
            raise ValueError(
                f"run.resume is never, but {folder} already holds checkpoints up to {own[0].name}; choose another "
                f"run.name, or remove the folder"
            )
        return []
    return [checkpoint.resolve(Path(resume))]


def resume(
    engine: Engine,
    starts: list[Path],
    stamp: dict,
    model: dict,
    *,
    allow_changed: bool | None = None,
    init_from: str | None = None,
) -> tuple[Progress, list[str]]:
    """Loads the first intact checkpoint of `starts` into the engine. Each rank must call it.

    Args:
        stamp: the identity of the run's data, from `data_stamp`.
        model: the model's configuration, for the message when the checkpoint has another one.
        allow_changed: whether the data may have changed; None where there is no such option.
        init_from: run, checkpoint or Hugging Face folder with the weights of a run that has no checkpoints.

    Returns:
        The progress of that checkpoint, and what a log should say about it.

    Raises:
        CheckpointError: none of the checkpoints is intact, or one belongs to another model.
        ValueError: the data are not those of the checkpoint.
    """
    errors = []
    for path in starts:
        try:
            manifest = modernize_manifest(checkpoint.read_manifest(path))
            changed = _changes(manifest.get("data", {}), stamp)
            if changed and not allow_changed:
                remedy = "Choose another run.name to start a new run with these data"
                if allow_changed is not None:
                    remedy = (
                        "To go on with the data of this configuration, from the same count of sequences on, set "
                        "data.allow_changed true"
                    )
                raise ValueError(f"checkpoint {path} was trained on other data: {'; '.join(changed)}. {remedy}")
            checkpoint.load(path, engine.shards())
        except CheckpointMismatch as error:
            different = _changes(manifest.get("config", {}).get("model", {}), model)
            raise CheckpointMismatch(f"{error}. Of the model's configuration, {'; '.join(different)}") from error
        except CheckpointError as error:
            errors.append(str(error))
            continue
        engine.sync_from_shards(manifest["step"])
        notes = [f"skipped: {error}" for error in errors] + [f"resumed from {path}"]
        notes += [f"data changed: {change}" for change in changed]
        progress = Progress(manifest["step"], manifest["cursor"], manifest["tokens"], manifest.get("substituted", 0))
        if not allow_changed:
            progress.quarantine = [(sha256, bundle) for sha256, bundle in manifest.get("quarantine", [])]
        return progress, notes
    if not errors and init_from is not None and (Path(init_from) / "config.json").is_file():
        fill_from_released(engine, init_from, ModelConfig(**model))
        return Progress(), [f"weights from {init_from}"]
    if not errors and init_from is not None:
        path = checkpoint.resolve(Path(init_from))
        checkpoint.load(path, engine.shards(), prefix="model/")
        engine.sync_from_shards(0)
        return Progress(), [f"weights from {path}"]
    if errors:
        raise CheckpointError(
            "; ".join(errors) + ". None of the checkpoints is sound; mend or remove them, or choose another run.name"
        )
    return Progress(), []


def fill_from_released(engine: Engine, path: str, config: ModelConfig) -> None:
    """Gives the engine the weights of a Hugging Face folder.

    Raises:
        ValueError: no weights there, or of a model that computes something else.
    """
    kind = "pretraining" if config.pair_head else "language"
    source = Source(path, kind)
    theirs, mine = computing_fields(source.config, kind, None), computing_fields(config, kind, None)
    if different := [f"model.{n} {theirs.get(n)}" for n in sorted(theirs | mine) if theirs.get(n) != mine.get(n)]:
        raise ValueError(f"the model in {path} is another: it has {', '.join(different)}")
    engine.initialize(source.part)


def data_stamp(config: TrainConfig, corpora: list[Corpus]) -> dict:
    """What, besides the slot number, decides what a sequence is. Plain JSON."""
    data = config.data
    stamp = {
        "corpora": [corpus.fingerprint for corpus in corpora],
        "weights": [source.weight for source in data.train],
        "seed": config.run.seed,
        "objective": data.objective,
        **{name: getattr(data, name) for name in ("sequence_length", "packing", "shuffle", "fim_rate")},
    }
    if data.shuffle == "window":
        stamp |= {"window_shards": data.window_shards, "partitions": data.partitions}
        if data.partitions > 1:  # their shares of an epoch follow from all changes, those to come included
            stamp |= {"weight_changes": [asdict(change) for change in data.mixture_schedule]}
    if data.objective == "mlm":
        stamp |= {name: getattr(data, name) for name in ("mlm_probability", "mask_unit")}
        stamp["pairs"] = data.sentence_pairs
    return stamp


def check_same_data(stamp: dict) -> None:
    """Each rank must call it.

    Raises:
        ValueError: the ranks do not see the same corpora.
    """
    value = int.from_bytes(hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).digest()[:8])
    total, num_ranks = sum_over_ranks([value, 1])
    if total != value * num_ranks % 2**64:
        raise ValueError(
            "the ranks do not see the same corpora: the manifests at the paths of data.train differ from machine to "
            "machine; copy one of them everywhere"
        )


def _changes(before: dict, now: dict) -> list[str]:
    return [f"{key} was {before.get(key)} and is {now[key]}" for key in now if before.get(key) != now[key]]
