import json
import math
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ingot.data.corpus import shards
from ingot.data.corpus.manifest import token_dtype
from ingot.data.corpus.quarantine import DamagedShard
from ingot.data.corpus.shards import Corpus
from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.writing.writer import add_special_tokens


def documents_of(corpus):
    """Every document of a split, from the token stream alone."""
    documents = []
    for number, shard in enumerate(corpus.shards):
        tokens, starts = corpus.read(number, 0, shard.tokens)
        documents += [part.tolist() for part in np.split(tokens, starts[1:])]
    return documents


def test_corpus_returns_the_documents(corpus_folder, tokenizer, texts):
    corpus = Corpus.open(corpus_folder, "train")
    expected = [text for number, text in enumerate(texts) if number % 8 != 7]
    documents = documents_of(corpus)
    assert len(corpus.shards) > 2
    assert [tokenizer.decode(d) for d in documents] == expected
    assert all(d[0] == tokenizer.bos_id and d[-1] == tokenizer.eos_id for d in documents)
    assert corpus.num_documents == len(expected)
    assert corpus.num_tokens == sum(map(len, documents))
    assert corpus.text_bytes == sum(len(t.encode()) for t in expected)
    assert corpus.vocab_size == 340
    assert (corpus.tokenizer_sha256, corpus.encoding_sha256) == (tokenizer.files_sha256, tokenizer.encoding_sha256)


def test_entropy_is_of_the_splits_own_tokens(corpus_folder):
    for split in ("train", "validation"):
        corpus = Corpus.open(corpus_folder, split)
        counts = Counter(token for document in documents_of(corpus) for token in document)
        total = sum(counts.values())
        expected = -sum(n / total * math.log(n / total) for n in counts.values())
        assert corpus.unigram_entropy == pytest.approx(expected, rel=1e-12)


def test_any_range_equals_the_slice_of_the_whole(corpus_folder):
    corpus = Corpus.open(corpus_folder, "train")
    whole, starts = corpus.read(1, 0, corpus.shards[1].tokens)
    draw = np.random.default_rng(0)
    ranges = np.sort(draw.integers(0, len(whole) + 1, (300, 2)), axis=1).tolist()
    for low, high in [*ranges, [0, 0], [len(whole), len(whole)]]:
        tokens, boundaries = corpus.read(1, low, high)
        assert np.array_equal(tokens, whole[low:high])
        assert tokens.dtype == np.uint16
        assert boundaries.dtype == np.int64
        assert np.array_equal(boundaries + low, starts[(starts >= low) & (starts < high)])
    with pytest.raises(IndexError):
        corpus.read(1, 0, len(whole) + 1)


def test_threads_with_few_files_and_little_cache(corpus_folder, monkeypatch):
    monkeypatch.setattr(shards, "MAX_OPEN_FILES", 1)
    monkeypatch.setattr(shards, "MAX_CACHED_STARTS", 1)
    reference = Corpus.open(corpus_folder, "train")
    expected = [reference.read(n, 5, 400) for n in range(len(reference.shards))]
    corpus = Corpus.open(corpus_folder, "train")

    def read(turn):
        number = turn % len(expected)
        return all(np.array_equal(a, b) for a, b in zip(corpus.read(number, 5, 400), expected[number], strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(400)))


def test_plain_webdataset_reads_the_shards(corpus_folder):
    import webdataset

    corpus = Corpus.open(corpus_folder, "train")
    for number, shard in enumerate(corpus.shards):
        samples = list(webdataset.WebDataset(str(corpus_folder / shard.name), shardshuffle=False).decode())
        index = json.loads((corpus_folder / shard.index).read_text())
        assert [s["__key__"] for s in samples] == [b["key"] for b in index["bundles"]]
        tokens = np.concatenate([s["tokens.npy"] for s in samples])
        assert tokens.dtype == np.uint16
        assert np.array_equal(tokens, corpus.read(number, 0, shard.tokens)[0])
        for sample in samples:
            assert sample["doclens.npy"].dtype == np.uint32
            assert sample["doclens.npy"].sum() == len(sample["tokens.npy"]) == sample["json"]["num_tokens"]
            assert len(sample["json"]["documents"]) == len(sample["doclens.npy"])


def test_frame():
    assert add_special_tokens([7, 8], 2, 3) == [2, 7, 8, 3]
    assert add_special_tokens([7, 8], 0, 0) == [0, 7, 8]
    assert add_special_tokens([7, 8], None, 3) == [3, 7, 8]
    assert add_special_tokens([7, 8], 2, None) == [2, 7, 8]
    assert add_special_tokens([7, 8], None, None) == [7, 8]


def test_token_types():
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32


def test_large_vocabulary_is_stored_in_32_bits(tmp_path, tokenizer, texts):
    tokenizer = load_tokenizer(tokenizer.folder)
    tokenizer.vocab_size = 70_000
    from ingot.data.writing.writer import CorpusWriter

    writer = CorpusWriter(tmp_path, tokenizer, shard_bytes=10_000, bundle_tokens=100)
    for text in texts:
        writer.add("train", "name", [69_999, *tokenizer.encode(text)], len(text))
    writer.finish()
    corpus = Corpus.open(tmp_path, "train")
    tokens, starts = corpus.read(0, 0, corpus.shards[0].tokens)
    assert (tokens[starts + 1] == 69_999).all()


def test_a_gpt2_like_corpus_has_one_mark_between_documents(tmp_path, gpt2_like, texts, write_corpus):
    folder = write_corpus(tmp_path / "c", load_tokenizer(gpt2_like), texts)
    tokens, starts = Corpus.open(folder, "train").read(0, 0, Corpus.open(folder, "train").shards[0].tokens)
    assert np.array_equal(np.flatnonzero(tokens == 0), starts)


def test_fingerprint_names_the_content(tmp_path, corpus_folder, tokenizer, texts, write_corpus):
    first = Corpus.open(corpus_folder, "train").fingerprint
    again = write_corpus(tmp_path / "again", tokenizer, texts)
    other = write_corpus(tmp_path / "other", tokenizer, [*texts[1:], texts[0]])
    assert Corpus.open(again, "train").fingerprint == first
    assert Corpus.open(other, "train").fingerprint != first
    assert Corpus.open(again, "validation").fingerprint != first


def test_missing_empty_unfinished_and_foreign_folders(tmp_path, corpus_folder):
    with pytest.raises(ValueError, match="does not exist"):
        Corpus.open(tmp_path / "nowhere", "train")
    folder = tmp_path / "corpus"
    folder.mkdir()
    with pytest.raises(ValueError, match="is empty"):
        Corpus.open(folder, "train")
    shutil.copytree(corpus_folder, folder, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="no split 'test'; it has: train, validation"):
        Corpus.open(folder, "test")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(ValueError, match="version 99, this program reads version 1"):
        Corpus.open(folder, "train")
    (folder / "manifest.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="does not describe a corpus"):
        Corpus.open(folder, "train")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Corpus.open(folder, "train")
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"unfinished.*prepare.py again"):
        Corpus.open(folder, "train")


def test_missing_and_cut_shards(tmp_path, corpus_folder):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_folder, folder)
    shard = folder / Corpus.open(folder, "train").shards[1].name
    content = shard.read_bytes()
    shard.write_bytes(content[:-512])
    with pytest.raises(DamagedShard, match=rf"{shard.name} has {len(content) - 512} bytes.*{len(content)}"):
        Corpus.open(folder, "train")
    shard.unlink()
    with pytest.raises(ValueError, match=f"lacks {shard.name}"):
        Corpus.open(folder, "train")
    Corpus.open(folder, "validation")


@pytest.mark.parametrize("part", ["tokens", "doclens"])
def test_a_flipped_bit_is_detected(tmp_path, corpus_folder, part):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_folder, folder)
    shard = Corpus.open(folder, "train").shards[0]
    bundle = json.loads((folder / shard.index).read_text())["bundles"][1]
    content = bytearray((folder / shard.name).read_bytes())
    content[bundle[f"{part}_offset"] + 9] ^= 4
    (folder / shard.name).write_bytes(content)
    corpus = Corpus.open(folder, "train")
    corpus.read(0, 0, 100)  # the bundle before is sound
    where = rf"{shard.name}.*{part} of bundle {bundle['key']}.*offset {bundle[f'{part}_offset']}"
    for _ in range(2):
        with pytest.raises(DamagedShard, match=where):
            corpus.read(0, 0, shard.tokens)


def test_a_changed_index_is_detected(tmp_path, corpus_folder):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_folder, folder)
    index = folder / Corpus.open(folder, "train").shards[0].index
    index.write_bytes(index.read_bytes().replace(b'"num_tokens": 1', b'"num_tokens": 2', 1))
    with pytest.raises(DamagedShard, match="checksum"):
        Corpus.open(folder, "train").read(0, 0, 10)
