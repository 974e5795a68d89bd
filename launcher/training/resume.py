"""The start of a run: at step 0 or from a checkpoint, after a check that its data are those of the checkpoint."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ingot.data.corpus.shards import Corpus
from ingot.launcher.config.aliases import modernize_manifest
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.training.progress import Progress
from ingot.model.config import ModelConfig
from ingot.model.huggingface.load import ReleasedModel
from ingot.model.huggingface.mapping.family import computing_fields
from ingot.parallel import checkpoint
from ingot.parallel.checkpoint import CheckpointError, CheckpointMismatch
from ingot.parallel.checkpoint.manifest import check_frozen
from ingot.parallel.checkpoint.run_folder import to_resume, warn
from ingot.parallel.engines.engine import Engine


@dataclass(frozen=True)
class Resumed:
    """Where a run starts.

    Attributes:
        source: the checkpoint that was loaded; None at step 0.
        lineage: of that checkpoint; see parallel/checkpoint/run_folder.py.
        damaged: newer checkpoints that could not be read.
        notes: lines for the log.
    """

    progress: Progress
    notes: list[str]
    source: Path | None = None
    lineage: Sequence[dict] = ()
    damaged: Sequence[Path] = ()


def checkpoints_to_try(resume: str, folder: Path) -> list[Path]:
    """The checkpoints from which a run can start, in the order to try them. An empty list means a start at step 0.

    Args:
        resume: `auto`, `never`, or the path of a run or checkpoint.
        folder: the run's folder.

    Raises:
        ValueError: `resume` is `never` and the folder has checkpoints, or the path has no checkpoint.
    """
    own = to_resume(folder / "checkpoints")
    if resume == "auto":
        return own
    if resume == "never":
        if own:
            raise ValueError(
                f"run.resume is never, but {folder} already holds checkpoints up to {own[0].name}; choose another "
                f"run.name, or remove the folder"
            )
        return []
    return [checkpoint.resolve(Path(resume), skipped=_warn_once)]


def _warn_once(text: str) -> None:
    """The note about a damaged checkpoint, which rank 0 prints for all."""
    if int(os.environ.get("RANK", 0)) == 0:
        warn(text)


def resume(
    engine: Engine,
    candidates: list[Path],
    stamp: dict,
    model: dict,
    *,
    allow_changed: bool | None = None,
    init_from: str | None = None,
    is_told: bool = False,
) -> Resumed:
    """Loads the first intact checkpoint of `candidates` into the engine. Each rank must call it.

    Args:
        stamp: the identity of the run's data, from `data_stamp`.
        model: the configuration of the model, for the message if the checkpoint has another one.
        allow_changed: whether the data may have changed (data.allow_changed); None for a run without that option.
        init_from: a run, a checkpoint or a Hugging Face folder with the initial weights of a run without checkpoints.
        is_told: whether run.resume names the one candidate.

    Raises:
        CheckpointError: none of the checkpoints is intact, or one belongs to another model.
        ValueError: the data, or the frozen parameters, are not those of the checkpoint.
    """
    errors, damaged = [], []
    manifest: dict = {}
    for path in candidates:
        try:
            stored = checkpoint.read_manifest_on_all_ranks(path)
            manifest = modernize_manifest(stored)
            changed = _changes(manifest.get("data", {}), stamp)
            if changed and not allow_changed:
                remedy = "Choose another run.name to start a new run with these data"
                if allow_changed is not None:
                    remedy = (
                        "To continue with the data of this configuration, after the same number of sequences, set "
                        "data.allow_changed true"
                    )
                raise ValueError(f"checkpoint {path} was trained on other data: {'; '.join(changed)}. {remedy}")
            check_frozen(path, manifest, engine.frozen_digests)
            checkpoint.load(path, engine.shards(), manifest=stored)
        except CheckpointMismatch as error:
            different = _changes(manifest.get("config", {}).get("model", {}), model)
            raise CheckpointMismatch(f"{error}. In the configuration of the model, {'; '.join(different)}") from error
        except CheckpointError as error:
            errors.append(str(error))
            damaged.append(path)
            continue
        engine.sync_from_shards(manifest["step"])
        notes = [f"skipped: {error}" for error in errors] + [f"resumed from {path}"]
        notes += [f"data changed: {change}" for change in changed]
        counts = [manifest.get(name, 0) for name in ("cursor", "tokens", "substituted")]
        progress = Progress(manifest["step"], *counts)
        if not allow_changed:
            progress.quarantine = [(sha256, bundle) for sha256, bundle in manifest.get("quarantine", [])]
        return Resumed(progress, notes, path, manifest.get("lineage", []), damaged)
    if not errors and init_from is not None and (Path(init_from) / "config.json").is_file():
        load_huggingface_weights(engine, init_from, ModelConfig(**model))
        return Resumed(Progress(), [f"weights from {init_from}"])
    if not errors and init_from is not None:
        path = checkpoint.resolve(Path(init_from), skipped=_warn_once)
        checkpoint.load(path, engine.shards(), prefix="model/")
        engine.sync_from_shards(0)
        return Resumed(Progress(), [f"weights from {path}"])
    if errors:
        remedy = "None of the checkpoints is intact; remove them, or choose another run.name"
        if is_told:
            remedy = "run.resume names this one; name another one, or leave run.resume out to take the newest"
        raise CheckpointError("; ".join(errors) + f". {remedy}")
    return Resumed(Progress(), [])


def load_huggingface_weights(engine: Engine, path: str, config: ModelConfig) -> None:
    """Loads the weights of a Hugging Face folder into the engine.

    Raises:
        ValueError: there are no weights, or they are of a model with another configuration.
    """
    kind = "pretraining" if config.pair_head else "language"
    source = ReleasedModel(path, kind)
    theirs, ours = computing_fields(source.config, kind, None), computing_fields(config, kind, None)
    if different := [f"model.{n} {theirs.get(n)}" for n in sorted(theirs | ours) if theirs.get(n) != ours.get(n)]:
        raise ValueError(f"the model in {path} has another configuration; set {', '.join(different)}")
    engine.initialize(source.part)


def data_stamp(config: TrainConfig, corpora: list[Corpus]) -> dict:
    """All that determines the sequence at a slot of the data order, as plain JSON."""
    data = config.data
    stamp = {
        "corpora": [corpus.fingerprint for corpus in corpora],
        "weights": [source.weight for source in data.train],
        "seed": config.run.seed,
        "objective": data.objective,
        **{name: getattr(data, name) for name in ("sequence_length", "packing", "shuffle", "fim_rate")},
    }
    if not data.intra_document_masking:  # left out otherwise: checkpoints of before it existed have no such key
        stamp["intra_document_masking"] = False
    if data.shuffle == "window":
        stamp |= {"window_shards": data.window_shards, "partitions": data.partitions}
        if data.partitions > 1:  # the shards of each partition depend on all changes of the weights, also later ones
            stamp |= {"weight_changes": [asdict(change) for change in data.mixture_schedule]}
    if data.objective == "mlm":
        stamp |= {name: getattr(data, name) for name in ("mlm_probability", "mask_unit")}
        stamp["pairs"] = data.sentence_pairs
    return stamp


def _changes(before: dict, now: dict) -> list[str]:
    return [f"{key} was {before.get(key)} and is {now[key]}" for key in now if before.get(key) != now[key]]
