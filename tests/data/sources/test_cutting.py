"""One text file of many documents, or of one that is too long; and the file that is alone."""

import gzip
import io
import lzma
import random
import tarfile

import pytest
import zstandard

from ingot.data.sources import file_parts
from ingot.data.sources.cutting import cut_documents, cut_text
from ingot.data.sources.documents import TRAIN, VALIDATION, Skipped
from ingot.data.sources.file_parts import CUT, read_documents
from ingot.data.sources.ingest import scan


def pieces(content, separator=b"", max_bytes=0):
    return [(p.content, p.is_cut) for p in cut_documents(io.BytesIO(content), separator, max_bytes)]


def test_at_a_separator():
    assert pieces(b"one\n\ntwo\n\n\n\nthree", b"\n\n") == [(b, False) for b in (b"one", b"two", b"", b"three")]
    assert pieces(b"one<e>", b"<e>") == [(b"one", False)]
    assert pieces(b"", b"<e>") == []


def test_at_the_end_of_a_line_a_word_or_a_character():
    assert pieces(b"aaaa\nbbbb\ncc", max_bytes=6) == [(b"aaaa\n", True), (b"bbbb\n", True), (b"cc", False)]
    assert pieces(b"aaaa bbbb cc", max_bytes=6) == [(b"aaaa ", True), (b"bbbb ", True), (b"cc", False)]
    two = "éé".encode()
    assert pieces("ééééé".encode(), max_bytes=5) == [(two, True), (two, True), (two[:2], False)]
    assert pieces(b"a\n" + b"b" * 9, max_bytes=6) == [(b"a\nbbbb", True), (b"bbbbb", False)]  # no short parts


@pytest.mark.parametrize("max_bytes", [0, 7, 100, 5000])
@pytest.mark.parametrize("separator", ["", "\n\n", "<|end|>"])
def test_nothing_is_lost_and_nothing_is_too_long(max_bytes, separator, monkeypatch):
    monkeypatch.setattr("ingot.data.sources.cutting._CHUNK", 64)
    draw = random.Random(0)
    parts = ["é", "x", " ", "\n", "\n\n", "<|end|>", "word ", "\U0001f600"]
    text = "".join(draw.choices(parts, k=2000))
    found = list(cut_documents(io.BytesIO(text.encode()), separator.encode(), max_bytes))
    assert sum(piece.size for piece in found) == len(text.encode())
    documents = [""]
    for piece in found:
        assert not max_bytes or len(piece.content) <= max_bytes
        documents[-1] += piece.content.decode()
        if not piece.is_cut:
            documents.append("")
    wanted = text.split(separator) if separator else [text]
    assert documents == (wanted if wanted[-1] == "" else [*wanted, ""])
    assert "".join(cut_text(text, text.encode(), max_bytes)) == text


def write(path, text):
    content = text.encode()
    half = len(content) // 2  # two frames, as parallel compressors write
    frame = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(frame(content[:half]) + frame(content[half:]))
    return path


def read(path, fraction=0.0, part_bytes=10**9, skipped=None, **options):
    parts, found = scan([path], ["*"], validation_fraction=fraction, part_bytes=part_bytes, **options)
    if skipped is not None:
        skipped.merge(found)
    return [(part.split_of(d, fraction), d) for part in parts for d in read_documents([part], skipped)]


TEXT = "".join(f"line {number} grüße\n" for number in range(300))
STORIES = "<|end|>".join(f"story {number}\nends" for number in range(300))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz", "a.txt.zst"])
def test_a_compressed_text_is_the_same_text(tmp_path, name):
    ((_, document),) = read(write(tmp_path / name, TEXT))
    assert (document.text, document.name) == (TEXT, name)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz", "a.txt.zst"])
@pytest.mark.parametrize("part_bytes", [100, 1000, 10**9])
def test_a_separator_makes_documents(tmp_path, name, part_bytes):
    found = sorted(
        (d.row, d.name, d.text) for _, d in read(write(tmp_path / name, STORIES), 0, part_bytes, separator="<|end|>")
    )
    assert found == [(n + 1, f"{name}:{n + 1}", f"story {n}\nends") for n in range(300)]


@pytest.mark.parametrize("part_bytes", [100, 10**9])
def test_a_long_text_is_cut_and_counted(tmp_path, part_bytes):
    skipped = Skipped()
    found = read(write(tmp_path / "a.txt", TEXT), 0, part_bytes, skipped, max_document_bytes=1000)
    found.sort(key=lambda item: item[1].row)
    assert "".join(d.text for _, d in found) == TEXT
    assert all(900 < len(d.text.encode()) <= 1000 for _, d in found[:-1])
    assert skipped.counts == {CUT: 1}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.xz"])
def test_a_long_record_is_cut_and_counted(tmp_path, name):
    skipped = Skipped()
    lines = '{"text": "short"}\n{"text": "' + "word " * 500 + '"}\n{"text": "last"}\n'
    found = read(write(tmp_path / name, lines), skipped=skipped, max_document_bytes=1000)
    assert [d.row for _, d in found] == [1, 2, 2, 2, 3]
    assert "".join(d.text for _, d in found if d.row == 2) == "word " * 500
    assert skipped.describe() == f"1 {CUT} (first: {name}:2)"


def test_a_record_that_is_too_large_is_skipped_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(file_parts, "MAX_RECORD_BYTES", 1000)
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "' + "x" * 5000 + '"}\n{"text": "three"}\n')
    skipped = Skipped()
    assert [d.text for _, d in read(tmp_path / "a.jsonl", skipped=skipped)] == ["one", "three"]
    assert "line 2: it has 5,013 bytes, more than the 1,000 that a record may have" in skipped.describe()
    parts, _ = scan([tmp_path / "a.jsonl"], ["*"], validation_fraction=0, part_bytes=20)
    assert [d.row for d in sorted(read_documents(parts), key=lambda d: d.row)] == [1, 3]
    with pytest.raises(ValueError, match="line 2: it has 5,013 bytes"):
        list(read_documents(parts, refuse_bad=True))


def test_a_sample_of_a_tar_that_is_too_large_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(file_parts, "MAX_RECORD_BYTES", 1000)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, size in enumerate((10, 5000, 20)):
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = size
            tar.addfile(member, io.BytesIO(b"x" * size))
    skipped = Skipped()
    assert [len(d.text) for _, d in read(tmp_path / "a.tar", skipped=skipped)] == [10, 20]
    assert "sample 1: it has 5,000 bytes, more than the 1,000 that a record may have" in skipped.describe()


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.txt.gz", "damaged"), ("a.txt.xz", "damaged: it ends inside a frame"), ("a.txt.zst", "damaged: it ends")],
)
def test_a_compressed_text_that_is_cut_off_is_named(tmp_path, name, message):
    content = write(tmp_path / name, TEXT * 20).read_bytes()
    (tmp_path / name).write_bytes(content[:-9])
    with pytest.raises(ValueError, match=rf"{name} is {message}"):
        scan([tmp_path / name], ["*"])


@pytest.mark.parametrize("name", ["a.tar.gz", "a.parquet.zst", "a.arrow.xz"])
def test_other_compressed_files_are_no_text(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name} is compressed, and only text and JSON lines are read so"):
        read(write(tmp_path / name, TEXT))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("part_bytes", [500, 10**9])
@pytest.mark.parametrize("max_document_bytes", [0, 1000])
def test_the_end_of_a_file_that_is_alone_is_held_out(tmp_path, name, part_bytes, max_document_bytes):
    options = {"part_bytes": part_bytes, "max_document_bytes": max_document_bytes}
    found = read(write(tmp_path / name, TEXT), 0.1, **options)
    train, validation = ("".join(d.text for each, d in found if each == split) for split in (TRAIN, VALIDATION))
    assert train + validation == TEXT
    assert validation.startswith("line ")
    assert 0.09 < len(validation) / len(TEXT) < 0.1
    assert len({d.name for _, d in found}) == len(found)
    assert {each for each, _ in read(tmp_path / name, 0, **options)} == {TRAIN}


@pytest.mark.parametrize("text", ["one line without an end", "x", "\n\n x \n", "word word\n" + " " * 2000])
def test_texts_with_little_to_divide(tmp_path, text):
    found = read(write(tmp_path / "a.txt", text), 0.01)
    assert "".join(d.text for _, d in found).strip() == text.strip()
    assert TRAIN in {split for split, _ in found}


def test_few_documents_of_one_file_have_both_splits(tmp_path):
    for number in range(2, 12):
        text = "<|end|>".join(f"story {n}" for n in range(number))
        found = read(write(tmp_path / f"{number}.txt", text), 0.01, separator="<|end|>")
        assert {split for split, _ in found} == {TRAIN, VALIDATION}
        assert sorted((d.text for _, d in found), key=lambda t: int(t[6:])) == text.split("<|end|>")
