"""From inputs to a corpus folder: plan, removal of duplicates, vocabulary, tokens, assembly.

Unfinished work is in OUTPUT.partial: the plan, the tokenizer, and the pieces with their markers. Rank 0 plans, trains
the vocabulary, marks duplicates and assembles. All ranks compute signatures and tokenize.
"""

from __future__ import annotations

import shutil
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ingot.data.corpus.manifest import MANIFEST, read_manifest
from ingot.data.sources.documents import Skipped
from ingot.data.sources.file_parts import FilePart
from ingot.data.sources.ingest import find_input_files, scan
from ingot.data.tokenizers.identity import hash_files
from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer, tokenizer_files
from ingot.data.writing import deduplication
from ingot.data.writing.pieces import PLAN, PreparationPlan, assemble, finished_piece, group_into_pieces
from ingot.data.writing.writer import CorpusWriter, check_output, is_disk_full, locked_for_writing, publish_corpus
from ingot.launcher.config.prepare import (
    PrepareOptions,
    asked,
    cores,
    fingerprint,
    inputs_of,
    own_places,
    separator_of,
    settings,
)
from ingot.launcher.preparation.rank_coordinator import RankCoordinator, read_text_or_empty
from ingot.launcher.preparation.vocabulary import make_tokenizer, tokenizer_is_ready
from ingot.launcher.preparation.worker_pool import ProgressBar, process_pieces


@dataclass
class Outcome:
    """The manifest, what was skipped, seconds of each phase, and whether an existing corpus was reused."""

    manifest: dict
    skipped: str
    seconds: dict[str, float]
    reused: bool = False


class PhaseTimer:
    """Measures the seconds of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase], self._last = now - self._last, now


def run_rank_zero(options: PrepareOptions, ranks: RankCoordinator) -> Outcome:
    """The work of rank 0; all work if it is the only rank. Raises ValueError and OSError for what a user can fix."""
    output, timer = Path(options.output), PhaseTimer()
    existing = load_tokenizer(options.tokenizer.path) if options.tokenizer.path else None
    if existing is not None and existing.bos_id is None and existing.eos_id is None:
        print(
            f"note: the tokenizer {options.tokenizer.path} names no token that begins or ends a text, so documents are "
            f"not marked; a tokenizer_config.json with bos_token and eos_token names them",
            file=sys.stderr,
        )
    with ExitStack() as stack:
        if not ranks.is_single:  # the other ranks already look for the plan
            _open_shared_folder(ranks, stack, output, options)
        try:
            parts, skipped = _scan(options)
        except BaseException:
            if not ranks.is_single and not _kept_pieces(ranks.folder):
                stack.close()
                shutil.rmtree(ranks.folder, ignore_errors=True)
            raise
        timer.end("reading")
        made_from = fingerprint(options, parts, existing.files_sha256 if existing else None)
        plan = _make_plan(options, made_from, parts, skipped, ranks)
        if manifest := find_unchanged_corpus(output, made_from):
            if not ranks.is_single:
                replace(plan, finished=True, pieces=[]).save(ranks.folder)
                _wait_until_others_left(ranks, plan)
                shutil.rmtree(ranks.folder, ignore_errors=True)
            return Outcome(manifest, skipped.describe(), timer.seconds, reused=True)
        check_output(output, options.overwrite)
        if ranks.is_single:
            stack.enter_context(locked_for_writing(ranks.folder, output))
        try:
            return _make(options, plan, ranks, existing, timer)
        except BaseException as error:
            kept = _kept_pieces(ranks.folder)
            if not kept:
                shutil.rmtree(ranks.folder, ignore_errors=True)
            if is_disk_full(error):
                left = f"{kept} finished pieces are kept in {ranks.folder}" if kept else "the written files are removed"
                raise OSError(
                    error.errno,
                    f"no space to write {output} ({error.strerror}): free some space or choose another "
                    f"--output; {left}",
                ) from error
            raise


def _make(
    options: PrepareOptions,
    plan: PreparationPlan,
    ranks: RankCoordinator,
    existing: Tokenizer | None,
    timer: PhaseTimer,
) -> Outcome:
    """Make the corpus by `plan`, after all inputs have been scanned."""
    output, folder = Path(options.output), ranks.folder
    _remove_other_pieces(folder, plan, options.overwrite)
    plan.save(folder)
    if plan.deduplicate != "none":
        process_own_pieces(plan, "signatures", ranks, cores(options))
        _wait_for_pieces(plan, "signatures", ranks)
        if missing_pieces(plan, "dropped", folder):
            deduplication.mark_duplicates(plan, folder)
        timer.end("duplicates")
    tokenizer = make_tokenizer(options, plan, folder, existing)
    timer.end("vocabulary")
    process_own_pieces(plan, "tokens", ranks, cores(options))
    _wait_for_pieces(plan, "tokens", ranks)
    timer.end("tokenizing")

    corpus = folder / "corpus"
    shutil.rmtree(corpus, ignore_errors=True)
    tokenizer.save(corpus / "tokenizer")
    writer = CorpusWriter(corpus, tokenizer, shard_bytes=options.shard_bytes, bundle_tokens=options.bundle_tokens)
    skipped = assemble(plan, folder, writer)
    skipped.merge(deduplication.count_dropped(plan, folder))
    if not writer.num_documents:
        shutil.rmtree(folder)  # its pieces are empty
        raise ValueError(f"no document is left: {skipped.describe()}. Check text_column, where and the input")
    manifest = writer.finish(made_from=plan.fingerprint, settings=settings(options), skipped=skipped.counts)
    publish_corpus(corpus, output.absolute())
    timer.end("assembling")
    if not ranks.is_single:
        _wait_until_others_left(ranks, plan)
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(manifest, skipped.describe(), timer.seconds)


def run_other_rank(options: PrepareOptions, ranks: RankCoordinator) -> None:
    """The work of every rank except rank 0: its pieces of the plan that rank 0 writes."""
    folder, command = ranks.folder, asked(options)
    replaced = ""  # session of a plan that rank 0 has replaced

    def new_plan() -> PreparationPlan | None:
        plan = PreparationPlan.load(folder)
        if plan is None or plan.session == replaced:
            return None
        return plan if plan.num_ranks == ranks.num_ranks and plan.asked == command else None

    with ranks.heartbeat():
        while True:
            plan = ranks.wait_for(new_plan, "the plan")
            try:
                _follow_plan(plan, ranks, options)
                return
            except _PlanReplaced:
                replaced = plan.session


class _PlanReplaced(Exception):
    """Rank 0 has started again, with another plan."""


def _follow_plan(plan: PreparationPlan, ranks: RankCoordinator, options: PrepareOptions) -> None:
    folder = ranks.folder

    def wait_until(is_done: Callable[[], bool], what: str) -> None:
        def look() -> bool | None:
            if is_done():
                return True
            if (folder / PLAN).exists() and (now := PreparationPlan.load(folder)) and now.session != plan.session:
                raise _PlanReplaced
            return None

        ranks.wait_for(look, what)

    if not plan.finished:
        if plan.deduplicate != "none":
            process_own_pieces(plan, "signatures", ranks, cores(options))
            wait_until(lambda: not missing_pieces(plan, "dropped", folder), "the removal of duplicates")
        wait_until(lambda: tokenizer_is_ready(folder, plan), "the tokenizer")
        process_own_pieces(plan, "tokens", ranks, cores(options))
        output = Path(options.output)
        wait_until(lambda: find_unchanged_corpus(output, plan.fingerprint) is not None, "the assembly of the corpus")
    (folder / f"left-{ranks.rank}").write_text(plan.session)


def _wait_until_others_left(ranks: RankCoordinator, plan: PreparationPlan) -> None:
    """The folder can be removed when no other rank uses it any more. A rank that has died is only a warning."""

    def still_there() -> list[int]:
        return [
            rank
            for rank in range(1, ranks.num_ranks)
            if read_text_or_empty(ranks.folder / f"left-{rank}") != plan.session
        ]

    try:
        ranks.wait_for(lambda: None if still_there() else True, "the end", still_there)
    except ValueError as error:
        print(f"warning: {error}", file=sys.stderr)


def _wait_for_pieces(plan: PreparationPlan, stage: str, ranks: RankCoordinator) -> None:
    if not ranks.is_single:

        def unfinished() -> set[int]:
            return ranks.ranks_of(missing_pieces(plan, stage, ranks.folder)) - {0}

        ranks.wait_for(lambda: None if unfinished() else True, f"pieces of {stage}", unfinished)
    assert not missing_pieces(plan, stage, ranks.folder)


def process_own_pieces(plan: PreparationPlan, stage: str, ranks: RankCoordinator, workers: int) -> None:
    """Process the pieces of this rank that are not finished yet."""
    mine = ranks.own_pieces(len(plan.pieces))
    todo = [n for n in mine if finished_piece(ranks.folder, stage, n, plan.fingerprint, whole=True) is None]
    if todo and len(todo) < len(mine):
        print(f"resuming: {len(mine) - len(todo)} of {len(mine)} pieces of {stage} are finished", file=sys.stderr)
    process_pieces(plan, stage, todo, ranks.folder, workers, show=ranks.rank == 0)


def missing_pieces(plan: PreparationPlan, stage: str, folder: Path) -> list[int]:
    """The pieces of all ranks that are not finished."""
    return [n for n in range(len(plan.pieces)) if finished_piece(folder, stage, n, plan.fingerprint) is None]


def _scan(options: PrepareOptions) -> tuple[list[FilePart], Skipped]:
    inputs = inputs_of(options)
    exclude = [*options.exclude, *own_places(Path(options.output), inputs)]
    inputs = [
        each if each.exclude is None else replace(each, exclude=(*each.exclude, *exclude[len(options.exclude) :]))
        for each in inputs
    ]
    total = sum(found.path.stat().st_size for found in find_input_files(inputs, options.include, exclude))
    with ProgressBar("reading", total) as bar:
        return scan(
            inputs,
            options.include,
            exclude,
            validation_fraction=options.validation_fraction,
            max_bytes=options.max_bytes,
            seed=options.seed,
            part_bytes=options.piece_bytes,
            separator=separator_of(options),
            max_document_bytes=options.max_document_bytes,
            threads=cores(options),
            progress=bar.add,
        )


def _make_plan(
    options: PrepareOptions, made_from: str, parts: list[FilePart], skipped: Skipped, ranks: RankCoordinator
) -> PreparationPlan:
    if options.deduplicate == "near":
        deduplication.check_library()
    return PreparationPlan(
        asked=asked(options),
        fingerprint=made_from,
        session=uuid.uuid4().hex,
        num_ranks=ranks.num_ranks,
        validation_fraction=options.validation_fraction,
        bundle_tokens=options.bundle_tokens,
        refuse_bad=options.bad_records == "refuse",
        deduplicate=options.deduplicate,
        near_threshold=options.near_threshold,
        pieces=group_into_pieces(parts, options.piece_bytes),
        skipped=skipped,
    )


def _open_shared_folder(ranks: RankCoordinator, stack: ExitStack, output: Path, options: PrepareOptions) -> None:
    stack.enter_context(locked_for_writing(ranks.folder, output))
    before = PreparationPlan.load(ranks.folder)
    for path in [ranks.folder / PLAN, *ranks.folder.glob("left-*"), *ranks.folder.glob("alive-*")]:
        path.unlink(missing_ok=True)
    if before is not None:  # kept because it says which corpus the pieces belong to
        (ranks.folder / "before").mkdir(exist_ok=True)
        before.save(ranks.folder / "before")
    stack.enter_context(ranks.heartbeat())


def _remove_other_pieces(folder: Path, plan: PreparationPlan, overwrite: bool) -> None:
    """Keep the work of a killed run if it belongs to this plan, else remove it.

    Raises ValueError if this would remove finished pieces of other input or settings, without `overwrite`.
    """
    before = PreparationPlan.load(folder) or PreparationPlan.load(folder / "before")
    if before and before.fingerprint == plan.fingerprint:
        return
    kept = _kept_pieces(folder) if before else 0
    if kept and not overwrite:
        raise ValueError(
            f"{folder} has {kept} finished pieces of a run with other input or settings: continue that run, give "
            f"--overwrite to remove them, or choose another --output"
        )
    for left in folder.iterdir():
        if left.name.startswith("alive-"):
            continue
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _kept_pieces(folder: Path) -> int:
    """Number of finished pieces in the folder, of any plan."""
    return len(list(folder.glob("tokens-*.json"))) if folder.is_dir() else 0


def find_unchanged_corpus(output: Path, made_from: str) -> dict | None:
    """The manifest of the corpus in `output`, if it is complete and `made_from` is its fingerprint, else None."""
    if not (output / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(output)
    except ValueError:  # it is replaced, or an error, like any other corpus
        return None
    if manifest.get("made_from") != made_from:
        return None
    sizes = {s["name"]: s["bytes"] for split in manifest["splits"].values() for s in split["shards"]}
    present = all((output / name).is_file() and (output / name).stat().st_size == size for name, size in sizes.items())
    same = hash_files(tokenizer_files(output / "tokenizer")) == manifest["tokenizer"]["sha256"]
    return manifest if present and same else None
