"""The whole way from text files to a corpus folder, as the command goes it."""

import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ingot.data.corpus.shards import Corpus
from ingot.data.tokenizers.load import load_tokenizer
from ingot.launcher.config.prepare import PrepareOptions, TokenizerOptions
from ingot.launcher.preparation.prepare import prepare

ROOT = Path(__file__).resolve().parents[3]


def options(source, output, **changes):
    tokenizer = changes.pop("tokenizer", TokenizerOptions(vocab_size=340))
    values = dict(validation_fraction=0.2, shard_bytes=15_000, bundle_tokens=1000, include=["*.txt"], exclude=[])
    return PrepareOptions(input=[str(source)], output=str(output), tokenizer=tokenizer, **{**values, **changes})


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def command(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, ROOT / "launcher" / "prepare.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        **kwargs,
    )


def test_same_bytes_for_any_number_of_workers_and_any_place(tmp_path, text_folder):
    prepare(options(text_folder, tmp_path / "one", workers=1))
    shutil.copytree(text_folder, tmp_path / "elsewhere")
    prepare(options(tmp_path / "elsewhere", tmp_path / "two", workers=2))
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert {"manifest.json", "tokenizer/tokenizer.model", "train-000001.tar", "validation-000000.json"} <= set(one)


def documents_of(folder, split):
    """The texts of a split."""
    tokenizer, found = load_tokenizer(folder / "tokenizer"), []
    corpus = Corpus.open(folder, split)
    for number, shard in enumerate(corpus.shards):
        tokens, starts = corpus.read(number, 0, shard.tokens)
        ends = [*starts[1:], shard.tokens]
        found += [tokenizer.decode(tokens[a:b]) for a, b in zip(starts, ends, strict=True)]
    return found


@pytest.mark.parametrize("separator", [None, "|x|"])
def test_a_file_that_is_alone_has_both_splits_for_any_number_of_workers(tmp_path, texts, separator):
    whole = (separator or "").join(texts)
    (tmp_path / "one.txt").write_text(whole)
    most = 20_000 if separator else 2000
    changes = {"max_document_bytes": most, "piece_bytes": 5000, "split_documents": separator}
    summaries = [
        prepare(options(tmp_path / "one.txt", tmp_path / str(n), workers=n, validation_fraction=0.1, **changes))
        for n in (1, 2)
    ]
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    train, validation = (documents_of(tmp_path / "1", split) for split in ("train", "validation"))
    assert all(0 < len(text) <= most for text in train + validation)
    if separator is None:
        assert "".join(train) + "".join(validation) == whole
        assert "skipped or cut: 1 cut at max_document_bytes (first: one.txt:1)" in str(summaries[0])
    else:
        assert sorted(train + validation) == sorted(texts)
    assert "no validation split" not in str(summaries[0])


def test_a_corpus_without_a_validation_split_says_so_at_once(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "%s"}\n' % ("word and word " * 400) * 2)
    wanted = options(tmp_path / "a.jsonl", tmp_path / "c", tokenizer=TokenizerOptions(vocab_size=270))
    wanted = replace(wanted, validation_fraction=0.001, include=["*"])
    assert "there is no validation split" in str(prepare(wanted))
    assert "there is no validation split" not in str(prepare(replace(wanted, validation_fraction=0, overwrite=True)))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "megabytes", "most"), [("sentencepiece", 200, 600), ("gpt2", 60, 900)])
def test_a_document_of_any_size_needs_little_memory(tmp_path, texts, gpt2_like, kind, megabytes, most):
    """It needed 32 to 46 times its size. The bound is for 10 MB, where a document is cut, and the libraries."""
    text = "".join(texts)
    with (tmp_path / "one.txt").open("w") as file:
        for _ in range(megabytes * 10**6 // len(text) + 1):
            file.write(text)
    line = [sys.executable, ROOT / "launcher/prepare.py", "--input", tmp_path / "one.txt", "--output", tmp_path / "c"]
    line += ["--tokenizer.path", gpt2_like] if kind == "gpt2" else ["--tokenizer.vocab_size", 340]
    code = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1000); sys.exit(code)"
    )
    line = [sys.executable, "-c", code, *map(str, line), "--workers", "1"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < most


def test_documents_arrive_whole(tmp_path, text_folder, texts):
    summary = prepare(options(text_folder, tmp_path / "c"))
    found = documents_of(tmp_path / "c", "train") + documents_of(tmp_path / "c", "validation")
    assert sorted(found) == sorted(texts)
    assert summary.manifest["num_documents"] == len(texts)
    assert summary.manifest["tokenizer"]["vocab_size"] == 340


def test_a_finished_corpus_is_reused_and_a_different_one_refused(tmp_path, text_folder):
    source, output = tmp_path / "source", tmp_path / "c"
    shutil.copytree(text_folder, source)
    assert not prepare(options(source, output)).reused
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    assert prepare(options(source, output, workers=2)).reused
    assert before == {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    with pytest.raises(ValueError, match="--overwrite"):
        prepare(options(source, output, seed=1))
    (source / "part0" / "000.txt").write_text("another text\n")
    with pytest.raises(ValueError, match="--overwrite"):
        prepare(options(source, output))
    assert before == {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    assert not prepare(options(source, output, overwrite=True)).reused
    assert prepare(options(source, output)).reused
    (output / "tokenizer" / "tokenizer.model").write_bytes(b"other")
    with pytest.raises(ValueError, match="damaged"):
        prepare(options(source, output))


@pytest.mark.parametrize("kind", ["sentencepiece", "transformers"])
def test_an_existing_tokenizer(tmp_path, text_folder, tokenizer, gpt2_like, kind):
    path = tokenizer.folder if kind == "sentencepiece" else gpt2_like
    chosen = TokenizerOptions(path=str(path))
    prepare(options(text_folder, tmp_path / "c", tokenizer=chosen))
    corpus = Corpus.open(tmp_path / "c", "train")
    assert corpus.tokenizer_sha256 == load_tokenizer(path).files_sha256
    assert corpus.encoding_sha256 == load_tokenizer(path).encoding_sha256
    shutil.copytree(path, tmp_path / "copy")
    assert prepare(options(text_folder, tmp_path / "c", tokenizer=TokenizerOptions(path=str(tmp_path / "copy")))).reused


def test_the_output_may_lie_inside_of_the_input(tmp_path, text_folder, gpt2_like):
    shutil.copytree(text_folder, tmp_path / "source")
    inside = options(
        tmp_path / "source", tmp_path / "source" / "c", include=["*"], tokenizer=TokenizerOptions(path=str(gpt2_like))
    )
    assert not prepare(inside).reused
    assert prepare(inside).reused


def test_the_vocabulary_sees_no_held_out_text(tmp_path, text_folder):
    source = tmp_path / "source"
    shutil.copytree(text_folder, source)
    summary = prepare(options(source, tmp_path / "a"))
    tokens = summary.manifest["tokenizer"]["sha256"]
    from ingot.data.sources.ingest import scan

    held_out = [s for s in scan([source], ["*.txt"], validation_fraction=0.2)[0] if s.split == "validation"]
    held_out[0].path.write_text("quite unlike the others, zebra xylophone " * 50)
    assert prepare(options(source, tmp_path / "b")).manifest["tokenizer"]["sha256"] == tokens


def test_command(tmp_path, text_folder):
    (tmp_path / "latin.txt").write_bytes(b"gr\xfc\xdfe")
    (tmp_path / "options.yaml").write_text("tokenizer:\n  vocab_size: 340\nvalidation_fraction: 0.2\n")
    done = command(
        *(
            "--config",
            tmp_path / "options.yaml",
            "--input",
            text_folder,
            tmp_path / "latin.txt",
            "--output",
            tmp_path / "c",
        ),
        *("--exclude", "part1", "nothing*", "--workers", 2),
    )
    assert done.returncode == 0, done.stderr
    assert "40 documents" not in done.stdout  # shared between the splits
    assert "unigram entropy" in done.stdout
    assert "1 not UTF-8 (first: latin.txt)" in done.stdout
    assert "tokenizing" in done.stderr
    assert "B/s" in done.stderr
    splits = [Corpus.open(tmp_path / "c", split).num_documents for split in ("train", "validation")]
    assert sum(splits) == 40


def test_help_is_quick_and_complete():
    began = time.perf_counter()
    done = command("--help")
    assert time.perf_counter() - began < 2
    assert done.returncode == 0
    words = " ".join(done.stdout.split())
    assert "chosen by a hash of their names" in words
    assert "default: 8192" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--outptu", "x"], "output"),
        (["--tokenizer.vocab_size", "many"], "vocab_size"),
        (["--validation_fraction", "2"], "validation_fraction is 2; it must be a number"),
        (["--input", "nowhere"], "nowhere does not exist"),
        (["--include", "*.nothing"], "no text in"),
        (["--tokenizer.vocab_size", "60000"], "largest possible value is"),
        (["--tokenizer.path", "nowhere"], "tokenizer nowhere does not exist: it is no folder or file"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(tmp_path, text_folder, arguments, message):
    done = command("--input", text_folder, "--output", tmp_path / "c", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_room(tmp_path, text_folder):
    """The system itself refuses to write on: a limit on the size of files, as a full disk but without one."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    arguments = ("--input", text_folder, "--output", tmp_path / "c", "--tokenizer.vocab_size", 340)
    done = command(*arguments, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "no space to write" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert command(*arguments).returncode == 0
