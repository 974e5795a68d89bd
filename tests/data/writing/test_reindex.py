"""Corpora of tars that are there, and what `verify` finds in damaged ones."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from ingot.data.corpus.manifest import MANIFEST
from ingot.data.corpus.shards import Corpus
from ingot.data.writing.reindex import index_corpus
from ingot.data.writing.verify import verify_corpus

ROOT = Path(__file__).resolve().parents[3]


def command(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "launcher" / "prepare.py", *map(str, arguments)], capture_output=True, text=True
    )


@pytest.fixture
def corpus(tmp_path, corpus_folder):
    return Path(shutil.copytree(corpus_folder, tmp_path / "corpus"))


def tokens_of(folder, split):
    corpus = Corpus.open(folder, split)
    parts = [corpus.read(number, 0, shard.tokens) for number, shard in enumerate(corpus.shards)]
    return np.concatenate([tokens for tokens, _ in parts]), sum(len(starts) for _, starts in parts)


def test_a_lost_manifest_comes_back_as_it_was(corpus, corpus_folder):
    assert verify_corpus(corpus) == []
    for path in corpus.glob("*.json"):
        path.unlink()
    done = command("index", *corpus.glob("*.tar"))
    assert done.returncode == 0, done.stderr
    for path in corpus_folder.glob("*"):
        if path.is_file():
            assert path.read_bytes() == (corpus / path.name).read_bytes(), path.name
    assert command("verify", corpus).returncode == 0
    again = command("index", corpus)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


def write_tar(path, samples, writer="tarfile"):
    with webdataset.TarWriter(str(path)) as tar:
        for key, arrays in samples.items():
            tar.write({"__key__": key, **arrays})


def test_tars_of_others_are_linked_where_they_fit(tmp_path, tokenizer):
    lengths = np.array([7, 1, 12], dtype=np.uint32)
    arrays = [np.arange(20, dtype=np.uint16) + i for i in range(3)]
    (tmp_path / "theirs").mkdir()
    write_tar(
        tmp_path / "theirs" / "shard-000001.tar",
        {f"{i}": {"tokens.npy": array, "doclens.npy": lengths} for i, array in enumerate(arrays)},
    )
    done = command("index", tmp_path / "theirs", "--output", tmp_path / "c", "--tokenizer", tokenizer.folder)
    assert done.returncode == 0, done.stderr
    tokens, documents = tokens_of(tmp_path / "c", "shard")
    assert tokens.tolist() == np.concatenate(arrays).tolist()
    assert documents == 9
    assert verify_corpus(tmp_path / "c") == []
    assert (tmp_path / "c" / "shard-000001.tar").read_bytes() == (tmp_path / "theirs" / "shard-000001.tar").read_bytes()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_tars_without_lengths_are_written_anew(tmp_path, tokenizer, dtype):
    document = np.array([tokenizer.bos_id, 300, 301, tokenizer.eos_id], dtype=dtype)
    write_tar(tmp_path / "a.tar", {f"{i}": {"tokens.npy": np.tile(document, 3)} for i in range(4)})
    manifest = index_to(tmp_path / "c", [tmp_path / "a.tar"], tokenizer)
    tokens, documents = tokens_of(tmp_path / "c", "train")
    assert tokens.tolist() == np.tile(document, 12).tolist()
    assert documents == manifest["num_documents"] == 12
    assert verify_corpus(tmp_path / "c") == []
    write_tar(tmp_path / "c" / "b.tar", {"0": {"tokens.npy": document}})
    with pytest.raises(ValueError, match="name another folder with --output"):
        index_corpus(tmp_path / "c", [tmp_path / "c" / "b.tar"], tokenizer)


def index_to(folder, tars, tokenizer):
    folder.mkdir()
    tokenizer.save(folder / "tokenizer")
    return index_corpus(folder, tars, tokenizer)


BAD = {
    "too large": ({"tokens.npy": np.array([9999], dtype=np.uint16)}, "token id 9999, the tokenizer in .* has 340"),
    "not integers": ({"tokens.npy": np.zeros(3, dtype=np.float32)}, "holds float32, tokens are uint16 or uint32"),
    "two rows": ({"tokens.npy": np.zeros((3, 2), dtype=np.uint16)}, "must be a one-dimensional array"),
    "wrong lengths": (
        {"tokens.npy": np.zeros(3, dtype=np.uint16), "doclens.npy": np.array([1, 1], dtype=np.uint32)},
        "add up to the 3 tokens, they give 2",
    ),
    "pickle": ({"tokens.npy": np.zeros(3, dtype=np.uint16), "x.pyd": {"a": 1}}, "member '0.x.pyd' is refused"),
    "no tokens": ({"json": {"text": "raw"}}, "no tokens in"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_tars_are_refused(tmp_path, tokenizer, kind):
    arrays, message = BAD[kind]
    write_tar(tmp_path / "a.tar", {"0": arrays})
    with pytest.raises(ValueError, match=message):
        index_to(tmp_path / "c", [tmp_path / "a.tar"], tokenizer)


def test_an_array_of_objects_is_not_unpickled(tmp_path, tokenizer):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    content = io.BytesIO()
    np.save(content, np.array([Harm()], dtype=object), allow_pickle=True)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("0.tokens.npy")
        member.size = len(content.getvalue())
        tar.addfile(member, io.BytesIO(content.getvalue()))
    with pytest.raises(ValueError, match="must be a one-dimensional array"):
        index_to(tmp_path / "c", [tmp_path / "a.tar"], tokenizer)
    assert not (tmp_path / "ran").exists()


def change(path, offset, content):
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(content)] = content
    path.write_bytes(whole)


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


DAMAGES = {
    "a bit of the tokens": (
        lambda c: change(c / "train-000001.tar", 3000, b"\xaa\xaa"),
        ["train-000001.tar does not match its sha256", "of bundle train-"],
    ),
    "cut": (lambda c: (c / "train-000001.tar").write_bytes(b"x" * 700), ["has 700 bytes", "checksum", "damaged"]),
    "missing": (lambda c: (c / "train-000001.tar").unlink(), ["train-000001.tar is missing"]),
    "index": (lambda c: edit(c / "train-000001.json", tokens=1), ["train-000001.json does not match its checksum"]),
    "no index": (lambda c: (c / "train-000001.json").unlink(), ["train-000001.json is missing"]),
    "tokenizer": (lambda c: change(c / "tokenizer" / "tokenizer.model", 50, b"??"), ["not the tokenizer of this"]),
    "totals": (lambda c: edit(c / MANIFEST, num_tokens=3), ["num_tokens is 3, its splits have"]),
    "stranger": (lambda c: shutil.copy(c / "train-000001.tar", c / "x.tar"), ["x.tar is not listed"]),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_verify_says_what_is_wrong_where(corpus, kind):
    harm, expected = DAMAGES[kind]
    harm(corpus)
    problems = "\n".join(verify_corpus(corpus))
    for text in expected:
        assert text in problems


def test_verify_checks_what_no_checksum_shows(corpus, tokenizer):
    """A corpus that is consistent in itself but not with its tokenizer and its manifest."""
    manifest = json.loads((corpus / MANIFEST).read_text())
    manifest["splits"]["train"]["unigram_entropy"] += 0.1
    manifest["tokenizer"]["vocab_size"] = 300
    (corpus / MANIFEST).write_text(json.dumps(manifest))
    problems = "\n".join(verify_corpus(corpus))
    assert "tokenizer.vocab_size is 300, the tokenizer has 340" in problems
    assert "the vocabulary 300 ids" in problems


def test_verify_as_a_command(corpus, tmp_path):
    done = command("verify", corpus)
    assert (done.returncode, done.stdout) == (0, f"{corpus}: complete, no problems\n")
    (corpus / "train-000000.tar").unlink()
    done = command("verify", corpus)
    assert done.returncode == 2
    assert "train-000000.tar is missing" in done.stdout
    done = command("verify", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr
