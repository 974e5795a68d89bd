"""The way from inputs to a corpus folder: plan, duplicates, vocabulary, tokens, assembly.

Everything unfinished lies in OUTPUT.partial: the plan, the tokenizer, and the pieces with their markers. Rank 0 plans,
trains the vocabulary, decides about duplicates and assembles; all ranks tokenize.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ingot.data.sources.documents import Skipped
from ingot.data.sources.file_parts import FilePart
from ingot.data.sources.ingest import find_input_files, scan
from ingot.data.tokenizers.tokenizer import Tokenizer, hash_files, load_tokenizer, tokenizer_files
from ingot.data.writing import deduplication
from ingot.data.writing.pieces import PLAN, PreparationPlan, assemble, finished_piece, group_into_pieces
from ingot.data.writing.writer import CorpusWriter, check_output, is_disk_full, locked_for_writing, publish_corpus
from ingot.launcher.config.prepare import PrepareOptions, asked, cores, fingerprint, inputs_of, own_places, settings
from ingot.launcher.preparation.rank_coordinator import RankCoordinator
from ingot.launcher.preparation.vocabulary import make_tokenizer, tokenizer_is_there
from ingot.launcher.preparation.worker_pool import ProgressBar, process_pieces


@dataclass
class Outcome:
    """The manifest, what was left out, seconds of each phase, and whether the corpus was there already."""

    manifest: dict
    skipped: str
    seconds: dict[str, float]
    reused: bool = False


class PhaseTimer:
    """Seconds from lap to lap."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def lead(options: PrepareOptions, team: RankCoordinator) -> Outcome:
    """Rank 0's part: all of it where there is but one. Raises ValueError and OSError for what a user can mend."""
    output, clock = Path(options.output), PhaseTimer()
    existing = load_tokenizer(options.tokenizer.path) if options.tokenizer.path else None
    with ExitStack() as stack:
        if not team.alone:  # the others look for the plan meanwhile
            _open_meeting_place(team, stack, output, options)
        try:
            sources, skipped = _scan(options)
        except BaseException:
            if not team.alone and not _kept_pieces(team.folder):
                stack.close()
                shutil.rmtree(team.folder, ignore_errors=True)
            raise
        clock.lap("reading")
        made_from = fingerprint(options, sources, existing.sha256 if existing else None)
        plan = _plan(options, made_from, sources, skipped, team)
        if manifest := unchanged(output, made_from):
            if not team.alone:
                replace(plan, finished=True, pieces=[]).save(team.folder)
                _await_leaving(team, plan)
                shutil.rmtree(team.folder, ignore_errors=True)
            return Outcome(manifest, skipped.describe(), clock.laps, reused=True)
        check_output(output, options.overwrite)
        if team.alone:
            stack.enter_context(locked_for_writing(team.folder, output))
        try:
            return _make(options, plan, team, existing, clock)
        except BaseException as error:
            kept = _kept_pieces(team.folder)
            if not kept:
                shutil.rmtree(team.folder, ignore_errors=True)
            if is_disk_full(error):
                left = f"{kept} finished pieces are kept in {team.folder}" if kept else "what was written is removed"
                raise OSError(
                    error.errno,
                    f"no room to write {output} ({os.strerror(error.errno)}): free some space or choose another "
                    f"--output; {left}",
                ) from error
            raise


def _make(
    options: PrepareOptions, plan: PreparationPlan, team: RankCoordinator, existing: Tokenizer | None, clock: PhaseTimer
) -> Outcome:
    output, folder = Path(options.output), team.folder
    _clear_what_is_stale(folder, plan, options.overwrite)
    plan.save(folder)
    if plan.deduplicate != "none":
        process_own_pieces(plan, "signatures", team, cores(options))
        _await_pieces(plan, "signatures", team)
        if missing(plan, "dropped", folder):
            deduplication.mark_duplicates(plan, folder)
        clock.lap("duplicates")
    tokenizer = make_tokenizer(options, plan, folder, existing)
    clock.lap("vocabulary")
    process_own_pieces(plan, "tokens", team, cores(options))
    _await_pieces(plan, "tokens", team)
    clock.lap("tokenizing")

    corpus = folder / "corpus"
    shutil.rmtree(corpus, ignore_errors=True)
    tokenizer.save(corpus / "tokenizer")
    writer = CorpusWriter(corpus, tokenizer, shard_bytes=options.shard_bytes, bundle_tokens=options.bundle_tokens)
    left_out = assemble(plan, folder, writer)
    left_out.merge(deduplication.count_dropped(plan, folder))
    if not writer.num_documents:
        shutil.rmtree(folder)  # nothing in it is worth keeping
        raise ValueError(f"no document is left: {left_out.describe()}. Look at text_column, where and the input")
    manifest = writer.finish(made_from=plan.fingerprint, settings=settings(options), skipped=left_out.counts)
    publish_corpus(corpus, output.absolute())
    clock.lap("assembling")
    if not team.alone:
        _await_leaving(team, plan)
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(manifest, left_out.describe(), clock.laps)


def run_other_rank(options: PrepareOptions, team: RankCoordinator) -> None:
    """The part of every other rank: its share of the pieces, by rank 0's plan."""
    folder, question = team.folder, asked(options)

    def new_plan() -> PreparationPlan | None:
        plan = PreparationPlan.load(folder)
        if plan and plan.session != left and plan.num_ranks != team.num_ranks:
            return None
        return plan if plan and plan.asked == question and plan.session != left else None

    left = ""
    with team.alive():
        while True:
            plan = team.wait(new_plan, "the plan")
            try:
                _follow(plan, team, options)
                return
            except _AnotherPlan:
                left = plan.session


class _AnotherPlan(Exception):
    """Rank 0 has started again, with another plan."""


def _follow(plan: PreparationPlan, team: RankCoordinator, options: PrepareOptions) -> None:
    folder = team.folder

    def until(find, what: str) -> None:
        def look():
            if found := find():
                return found
            if (folder / PLAN).exists() and (now := PreparationPlan.load(folder)) and now.session != plan.session:
                raise _AnotherPlan
            return None

        team.wait(look, what)

    if not plan.finished:
        if plan.deduplicate != "none":
            process_own_pieces(plan, "signatures", team, cores(options))
            until(lambda: not missing(plan, "dropped", folder) or None, "the decision about duplicates")
        until(lambda: tokenizer_is_there(folder, plan) or None, "the tokenizer")
        process_own_pieces(plan, "tokens", team, cores(options))
        until(lambda: unchanged(Path(options.output), plan.fingerprint), "the assembly of the corpus")
    (folder / f"left-{team.rank}").write_text(plan.session)


def _await_leaving(team: RankCoordinator, plan: PreparationPlan) -> None:
    """The folder is removed when nobody looks there any more; a rank that has died is not waited for."""
    others = list(range(1, team.num_ranks))
    has_left = lambda rank: _text(team.folder / f"left-{rank}") == plan.session  # noqa: E731
    try:
        team.wait(lambda: all(map(has_left, others)) or None, "the end", lambda: [r for r in others if not has_left(r)])
    except ValueError as error:
        print(f"warning: {error}", file=sys.stderr)


def _await_pieces(plan: PreparationPlan, stage: str, team: RankCoordinator) -> None:
    if not team.alone:
        what = f"pieces of {stage}"
        absent = lambda: {number % team.num_ranks for number in missing(plan, stage, team.folder)} - {0}  # noqa: E731
        team.wait(lambda: not absent() or None, what, absent)
    assert not missing(plan, stage, team.folder)


def process_own_pieces(plan: PreparationPlan, stage: str, team: RankCoordinator, workers: int) -> None:
    """This rank's pieces of a stage that are not there yet."""
    mine = team.mine(range(len(plan.pieces)))
    todo = [n for n in mine if finished_piece(team.folder, stage, n, plan.fingerprint, whole=True) is None]
    if todo and len(todo) < len(mine):
        print(f"going on: {len(mine) - len(todo)} of {len(mine)} pieces of {stage} are there", file=sys.stderr)
    process_pieces(plan, stage, todo, team.folder, workers, show=team.rank == 0)


def missing(plan: PreparationPlan, stage: str, folder: Path) -> list[int]:
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
            threads=cores(options),
            progress=bar.add,
        )


def _plan(
    options: PrepareOptions, made_from: str, sources: list[FilePart], skipped: Skipped, team: RankCoordinator
) -> PreparationPlan:
    if options.deduplicate == "near":
        deduplication.check_library()
    return PreparationPlan(
        asked=asked(options),
        fingerprint=made_from,
        session=uuid.uuid4().hex,
        num_ranks=team.num_ranks,
        validation_fraction=options.validation_fraction,
        bundle_tokens=options.bundle_tokens,
        refuse_bad=options.bad_records == "refuse",
        deduplicate=options.deduplicate,
        near_threshold=options.near_threshold,
        pieces=group_into_pieces(sources, options.piece_bytes),
        skipped=skipped,
    )


def _open_meeting_place(team: RankCoordinator, stack: ExitStack, output: Path, options: PrepareOptions) -> None:
    stack.enter_context(locked_for_writing(team.folder, output))
    before = PreparationPlan.load(team.folder)
    for path in [team.folder / PLAN, *team.folder.glob("left-*"), *team.folder.glob("alive-*")]:
        path.unlink(missing_ok=True)
    if before is not None:  # kept aside to know whose the pieces are
        before.save(_aside(team.folder))
    stack.enter_context(team.alive())


def _aside(folder: Path) -> Path:
    place = folder / "before"
    place.mkdir(exist_ok=True)
    return place


def _clear_what_is_stale(folder: Path, plan: PreparationPlan, overwrite: bool) -> None:
    """Keep a killed run's work when it is of this plan, clear it when it is of another and little or `overwrite`.

    Raises ValueError when finished pieces of other input or settings would be lost.
    """
    before = PreparationPlan.load(folder) or PreparationPlan.load(folder / "before")
    if before and before.fingerprint == plan.fingerprint:
        return
    kept = _kept_pieces(folder) if before else 0
    if kept and not overwrite:
        raise ValueError(
            f"{folder} holds {kept} finished pieces of a run with other input or settings: go on with those, give "
            f"--overwrite to drop them, or choose another --output"
        )
    for left in folder.iterdir():
        if left.name.startswith("alive-"):
            continue
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _kept_pieces(folder: Path) -> int:
    """Finished pieces of any plan in the folder."""
    return len(list(folder.glob("tokens-*.json"))) if folder.is_dir() else 0


def unchanged(output: Path, made_from: str) -> dict | None:
    """The manifest of the corpus in `output`, if it is whole and was made from just this."""
    from ingot.data.corpus.shards import MANIFEST, read_manifest

    if not (output / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(output)
    except ValueError:  # to be replaced or refused like any other corpus
        return None
    if manifest.get("made_from") != made_from:
        return None
    sizes = {s["name"]: s["bytes"] for split in manifest["splits"].values() for s in split["shards"]}
    present = all((output / name).is_file() and (output / name).stat().st_size == size for name, size in sizes.items())
    same = hash_files(tokenizer_files(output / "tokenizer")) == manifest["tokenizer"]["sha256"]
    return manifest if present and same else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
