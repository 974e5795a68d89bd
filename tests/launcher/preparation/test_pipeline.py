"""Preparation in pieces: the same bytes for any number of workers and ranks, and going on after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset

from ingot.data.corpus.shards import Corpus
from ingot.data.writing.pieces import PreparationPlan
from ingot.launcher.config.prepare import InputOptions, PrepareOptions, TokenizerOptions
from ingot.launcher.preparation.prepare import prepare
from tests.data.conftest import make_text

ROOT = Path(__file__).resolve().parents[3]


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory, texts):
    """Text files and JSON lines, in a dozen pieces of PIECE bytes; some documents twice, some nearly so."""
    folder = tmp_path_factory.mktemp("mixed")
    for number, text in enumerate(texts[:20]):
        (folder / f"{number:02d}.txt").write_text(text)
    with open(folder / "more.jsonl", "w") as file:
        for number, text in enumerate([*texts[20:], texts[3].upper(), texts[30], texts[40] + " one more word"]):
            file.write(json.dumps({"text": text, "number": number}) + "\n")
    return folder


def options(source, output, **changes):
    values = dict(
        tokenizer=TokenizerOptions(vocab_size=340),
        validation_fraction=0.2,
        shard_bytes=15_000,
        bundle_tokens=1000,
        piece_bytes=8000,
    )
    return PrepareOptions(input=[str(source)], output=str(output), **{**values, **changes})


ARGUMENTS = (
    *("--tokenizer.vocab_size", 340, "--validation_fraction", 0.2, "--shard_bytes", 15_000),
    *("--bundle_tokens", 1000, "--piece_bytes", 8000),
)


def start(source, output, *arguments, rank=0, num_ranks=1, **environment):
    return subprocess.Popen(
        [sys.executable, ROOT / "launcher" / "prepare.py", "--input", source, "--output", output]
        + [str(a) for a in (*ARGUMENTS, *arguments)],
        env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(num_ranks), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory, mixed_folder):
    output = tmp_path_factory.mktemp("reference") / "c"
    prepare(options(mixed_folder, output, workers=1, deduplicate="near", near_threshold=0.7))
    return contents(output)


NEAR = ("--deduplicate", "near", "--near_threshold", 0.7)


@pytest.mark.parametrize("workers", [2, 3])
def test_same_bytes_for_any_number_of_workers(tmp_path, mixed_folder, reference, workers):
    prepare(options(mixed_folder, tmp_path / "c", workers=workers, deduplicate="near", near_threshold=0.7))
    assert contents(tmp_path / "c") == reference
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_same_bytes_for_any_number_of_ranks(tmp_path, mixed_folder, reference, num_ranks):
    ranks = [
        start(mixed_folder, tmp_path / "c", *NEAR, "--workers", 1, rank=r, num_ranks=num_ranks)
        for r in range(num_ranks)
    ]
    said = [rank.communicate(timeout=100) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * num_ranks, said
    assert "is ready" in said[0][0]
    assert contents(tmp_path / "c") == reference
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    again = [start(mixed_folder, tmp_path / "c", *NEAR, rank=r, num_ranks=num_ranks) for r in range(num_ranks)]
    said = [rank.communicate(timeout=100) for rank in again]
    assert [rank.returncode for rank in again] == [0] * num_ranks, said
    assert "is up to date" in said[0][0]
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_duplicates_are_counted_and_gone(reference, mixed_folder):
    manifest = json.loads(reference["manifest.json"])
    assert manifest["skipped"] == {"exact duplicates": 2, "near duplicates": 1}
    assert manifest["num_documents"] == 60


def test_a_rank_that_does_not_come_is_named(tmp_path, mixed_folder):
    lonely = start(mixed_folder, tmp_path / "c", "--timeout_seconds", 3, rank=0, num_ranks=2)
    out, err = lonely.communicate(timeout=60)
    assert lonely.returncode == 2, (out, err)
    assert "by rank 1" in err
    assert "Traceback" not in err
    lonely = start(mixed_folder, tmp_path / "d", "--timeout_seconds", 3, rank=1, num_ranks=2)
    out, err = lonely.communicate(timeout=60)
    assert lonely.returncode == 2
    assert "the plan by rank 0" in err
    # What rank 0 has done is kept for the next run, with any number of ranks.
    prepare(options(mixed_folder, tmp_path / "c"))
    prepare(options(mixed_folder, tmp_path / "e"))
    assert contents(tmp_path / "c") == contents(tmp_path / "e")


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    for number in range(12):
        with open(folder / f"{number}.jsonl", "w") as file:
            for row in range(30):
                file.write(json.dumps({"text": make_text(number * 1000 + row, 200)}) + "\n")
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_in_the_middle_it_goes_on(tmp_path, large_folder, workers):
    whole = tmp_path / "whole"
    prepare(options(large_folder, whole, workers=1, piece_bytes=100_000))
    output, partial = tmp_path / "c", tmp_path / "c.partial"
    run = start(large_folder, output, "--piece_bytes", 100_000, "--workers", workers)
    until = time.monotonic() + 60
    while len(list(partial.glob("tokens-*.json"))) < 2 and run.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert run.returncode == -signal.SIGKILL, "it was done too soon"
    time.sleep(1.2)  # its workers notice
    done = {p: p.stat().st_mtime_ns for p in partial.glob("tokens-*.json")}
    assert 2 <= len(done) < len(PreparationPlan.load(partial).pieces)

    (partial / "tokens-000099.123.tmp").write_bytes(b"half")  # as a writer that was killed leaves it
    damaged = sorted(done)[0].with_suffix(".bin")
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)

    with pytest.raises(ValueError, match="finished pieces of a run with other input"):
        prepare(options(large_folder, output, piece_bytes=100_000, seed=1))
    again = start(large_folder, output, "--piece_bytes", 100_000, "--workers", 2)
    _, err = again.communicate(timeout=100)
    assert again.returncode == 0, err
    assert f"resuming: {len(done) - 1} of " in err
    assert contents(output) == contents(whole)
    assert not partial.exists()


def test_pieces_of_other_settings_are_dropped_on_request(tmp_path, mixed_folder):
    partial = tmp_path / "c.partial"
    lonely = start(mixed_folder, tmp_path / "c", "--timeout_seconds", 2, rank=0, num_ranks=2)
    lonely.communicate(timeout=60)
    assert list(partial.glob("tokens-*.json"))
    with pytest.raises(ValueError, match="--overwrite"):
        prepare(options(mixed_folder, tmp_path / "c", seed=1))
    prepare(options(mixed_folder, tmp_path / "c", seed=1, overwrite=True))
    prepare(options(mixed_folder, tmp_path / "d", seed=1))
    assert contents(tmp_path / "c") == contents(tmp_path / "d")


def test_an_error_in_the_middle_keeps_what_is_done(tmp_path, texts):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(4):
        (source / f"{number}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    lines = [*map(json.dumps, ({"text": t} for t in texts)), "{broken"]
    (source / "4.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = TokenizerOptions(vocab_size=340, sample_bytes=10_000)
    strict = options(source, tmp_path / "c", bad_records="refuse", tokenizer=tokenizer, workers=1)
    with pytest.raises(ValueError, match=r"4.jsonl, line 61: not valid JSON .*--bad_records skip"):
        prepare(strict)
    kept = len(list((tmp_path / "c.partial").glob("tokens-*.json")))
    (source / "4.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    if kept:
        with pytest.raises(ValueError, match="other input"):
            prepare(strict)
    again = replace(strict, overwrite=True)
    assert prepare(again).manifest["num_documents"] == 300


def test_splits_of_a_configuration(tmp_path, texts):
    for name, some in (("a", texts[:20]), ("b", texts[20:25]), ("c", texts[25:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"body": t, "lang": name}) + "\n" for t in some))
    made = prepare(
        PrepareOptions(
            inputs=[
                InputOptions(str(tmp_path / "a.jsonl"), split="train"),
                InputOptions(str(tmp_path / "b.jsonl"), split="test"),
                InputOptions(str(tmp_path / "c.jsonl"), where=["lang=c"]),
            ],
            output=str(tmp_path / "out"),
            text_column="body",
            validation_fraction=0.5,
            tokenizer=TokenizerOptions(vocab_size=340),
        )
    )
    counts = {name: split["num_documents"] for name, split in made.manifest["splits"].items()}
    assert counts["test"] == 5
    assert counts["validation"] > 5
    assert counts["train"] + counts["validation"] == 55
    assert Corpus.open(tmp_path / "out", "test").num_documents == 5


def test_a_configuration_file_with_inputs(tmp_path, texts):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": t, "n": i}) + "\n" for i, t in enumerate(texts)))
    (tmp_path / "config.yaml").write_text(
        f"output: {tmp_path / 'out'}\ntext_column: body\ntokenizer: {{vocab_size: 340}}\n"
        f"inputs:\n  - {{path: {tmp_path / 'a.jsonl'}, split: train, where: ['n<50']}}\n"
        f"  - {{path: {tmp_path / 'a.jsonl'}, split: test, where: ['n>=50']}}\n"
    )
    done = subprocess.run(
        [sys.executable, ROOT / "launcher" / "prepare.py", "--config", tmp_path / "config.yaml"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {name: s["num_documents"] for name, s in manifest["splits"].items()} == {"test": 10, "train": 50}
    assert "60 filtered out" in done.stdout


def test_plain_webdataset_reads_every_shard(tmp_path, mixed_folder, reference):
    for name, content in reference.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    tars = sorted(tmp_path.glob("*.tar"))
    assert len(tars) > 3
    totals = {"train": 0, "validation": 0}
    for tar in tars:
        for sample in webdataset.WebDataset(str(tar), shardshuffle=False).decode():
            assert sample["doclens.npy"].sum() == len(sample["tokens.npy"]) == sample["json"]["num_tokens"]
            totals[tar.name.split("-")[0]] += len(sample["tokens.npy"])
    splits = json.loads(reference["manifest.json"])["splits"]
    assert totals == {name: split["num_tokens"] for name, split in splits.items()}


def test_nothing_left_is_an_error(tmp_path, texts):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t, "n": 1}) + "\n" for t in texts))
    tokenizer = prepare(options(tmp_path / "a.jsonl", tmp_path / "c")).folder / "tokenizer"
    shutil.copytree(tokenizer, tmp_path / "tokenizer")
    chosen = TokenizerOptions(path=str(tmp_path / "tokenizer"))
    with pytest.raises(ValueError, match=r"no document is left: 60 filtered out \(first: a\.jsonl:\d+\)"):
        prepare(options(tmp_path / "a.jsonl", tmp_path / "d", where=["n=2"], tokenizer=chosen))
    assert not (tmp_path / "d.partial").exists()


def test_max_bytes_ends_a_file_of_records_early(tmp_path, texts):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    made = prepare(options(tmp_path / "a.jsonl", tmp_path / "c", max_bytes=20_000, piece_bytes=10**6))
    size = sum(split["text_bytes"] for split in made.manifest["splits"].values())
    assert 20_000 <= size < 20_000 + max(map(len, texts))


def test_a_mistake_in_the_inputs_leaves_nothing_with_several_ranks(tmp_path):
    (tmp_path / "in").mkdir()
    first = start(tmp_path / "in", tmp_path / "c", rank=0, num_ranks=2)
    assert "no text in" in first.communicate(timeout=60)[1]
    assert first.returncode == 2
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
