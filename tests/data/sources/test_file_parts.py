"""Every kind of input gives its documents; whatever is wrong with one is said with its place."""

import gzip
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from ingot.data.sources.documents import Skipped, names_of
from ingot.data.sources.file_parts import kind_of, read_documents
from ingot.data.sources.ingest import Input, find_input_files, scan

RECORDS = [{"text": f"text number {i} grüße\n", "lang": "en" if i % 3 else "de", "score": i / 10} for i in range(30)]
TEXTS = [record["text"] for record in RECORDS]


def lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def write(path, records=RECORDS):
    """A file of `records` of the kind that its name says."""
    name = path.name
    if kind_of(name) == "lines":
        content = lines(records)
        if name.endswith(".gz"):
            content = gzip.compress(content)
        elif name.endswith(".zst"):
            half = len(content) // 2  # two frames, as parallel compressors write
            content = b"".join(zstandard.compress(part) for part in (content[:half], content[half:]))
        path.write_bytes(content)
    elif kind_of(name) == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=7)
    else:
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for number, record in enumerate(records):
                add(tar, f"part/{number:04d}.json", json.dumps(record).encode())
    return path


def add(tar, name, content, **changes):
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(content), 1.5  # a float makes an extended header
    for key, value in changes.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def documents(*inputs, refuse_bad=False, part_bytes=10**9, skipped=None, **options):
    inputs = [Input(given, **options) for given in inputs]
    sources, _ = scan(inputs, ["*"], validation_fraction=0, part_bytes=part_bytes)
    return list(read_documents(sources, skipped, refuse_bad=refuse_bad))


KINDS = ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.tar"]


@pytest.mark.parametrize("name", KINDS)
def test_documents_and_their_rows(tmp_path, name):
    found = documents(write(tmp_path / name))
    assert [d.text for d in found] == TEXTS
    assert [d.name for d in found] == [f"{name}:{row}" for row in range(1, 31)]


@pytest.mark.parametrize("name", KINDS)
def test_filter(tmp_path, name):
    skipped = Skipped()
    found = documents(write(tmp_path / name), where=("lang=en", "score>=2.0"), skipped=skipped)
    assert [d.text for d in found] == [r["text"] for r in RECORDS if r["lang"] == "en" and r["score"] >= 2]
    assert skipped.counts == {"filtered out": 30 - len(found)}


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_parts_have_the_same_documents(tmp_path, name):
    write(tmp_path / name)
    sources, _ = scan([tmp_path / name], ["*"], validation_fraction=0, part_bytes=300)
    assert len(sources) > 3
    by_row = sorted(read_documents(sources), key=lambda d: d.row)
    assert [(d.row, d.text) for d in by_row] == list(enumerate(TEXTS, 1))


def test_saved_datasets(tmp_path):
    import datasets

    train, test = datasets.Dataset.from_list(RECORDS[:20]), datasets.Dataset.from_list(RECORDS[20:])
    train.select(range(5, 15)).save_to_disk(tmp_path / "one")
    assert [d.text for d in documents(tmp_path / "one")] == TEXTS[5:15]
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    found = find_input_files([tmp_path / "both"], ["*"])
    assert [(f.split, f.name) for f in found] == [
        ("test", "test/data-00000-of-00001.arrow"),
        ("train", "train/data-00000-of-00001.arrow"),
    ]
    sources, _ = scan([Input(tmp_path / "both", where=("score<2.5",))], ["*"], part_bytes=100)
    assert sorted(d.text for d in read_documents(sources)) == sorted(TEXTS[:25])
    assert {s.split for s in sources} == {"train", "test"}


def test_a_dataset_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "train.jsonl")
    assert [d.text for d in documents(f"hf:{tmp_path / 'mine'}")] == TEXTS
    with pytest.raises(ValueError, match="hf:/nowhere/at/all cannot be loaded"):
        documents("hf:/nowhere/at/all")


def test_samples_of_text_with_metadata(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(4):
            add(tar, f"{number}.json", json.dumps({"lang": "en" if number else "de"}).encode())
            add(tar, f"{number}.txt", f"text {number}".encode())
    assert [d.text for d in documents(tmp_path / "a.tar", where=("lang=en",))] == ["text 1", "text 2", "text 3"]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.tar"])
def test_a_missing_column_names_those_that_are_there(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}.*'body'.*lang.*text_column") as error:
        documents(write(tmp_path / name), text_column="body")
    assert "score" in str(error.value)
    if name == "a.parquet":
        with pytest.raises(ValueError, match=r"'langue'.*has: text, lang, score"):
            documents(tmp_path / name, where=("langue=en",))
        with pytest.raises(ValueError, match=r"'score' has type double, not text; columns with text: text, lang"):
            documents(tmp_path / name, text_column="score")


BROKEN = {
    "no JSON": (b'{"text": "half', "not valid JSON"),
    "no object": (b"[1, 2]", "a JSON list"),
    "no text": (b'{"text": 7}', "'text' is int, not text"),
    "no UTF-8": (b'{"text": "\xff"}', "not valid JSON"),
    "half a character": (b'{"text": "\\ud800"}', "surrogates not allowed"),
    "no column": (b'{"txet": "x"}', "no column 'text'; it has: txet"),
    "deep": (b"[" * 100_000, "not valid JSON"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_line_is_counted_or_refused_with_its_place(tmp_path, kind):
    line, reason = BROKEN[kind]
    content = lines(RECORDS).splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"".join([*content[:17], line + b"\n", *content[17:]]))
    for part_bytes in (10**9, 200):
        skipped = Skipped()
        found = documents(tmp_path / "a.jsonl", skipped=skipped, part_bytes=part_bytes)
        assert sorted(d.text for d in found) == sorted(TEXTS)
        assert skipped.counts == {"broken records": 1}
        assert skipped.first["broken records"].startswith("a.jsonl, line 18: ")
        assert reason in skipped.describe()
        with pytest.raises(ValueError, match=r"a.jsonl, line 18: .*--bad_records skip"):
            documents(tmp_path / "a.jsonl", refuse_bad=True, part_bytes=part_bytes)


def test_empty_records_and_files_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": " \n"}, {"text": None}, {"text": "x"}]) + b"\n" + lines(RECORDS))
    skipped = Skipped()
    assert len(documents(tmp_path / "a.jsonl", skipped=skipped)) == 31
    assert skipped.counts == {"empty": 3}
    (tmp_path / "b.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no text in .*1 empty \(first: b.jsonl\)"):
        documents(tmp_path / "b.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_damaged_files_are_named(tmp_path, name):
    write(tmp_path / name, RECORDS * 200)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 3])  # not between two frames
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        documents(tmp_path / name)


def test_rows_are_drawn_together():
    assert names_of([("a", 0), ("b", 1), ("b", 2), ("b", 4), ("c", 5)]) == ["a", "b:1-2", "b:4", "c:5"]


@pytest.mark.parametrize("condition", ["lang", "=en", "a b=1", "__import__('os')", ""])
def test_what_is_no_filter(condition):
    with pytest.raises(ValueError, match="COLUMN=VALUE"):
        Input("x", where=(condition,)).check()


def test_conditions():
    from ingot.data.sources.filters import parse_filter

    record = {"lang": "en", "n": 3, "ok": True, "date": "2024-05-01", "meta": {"id": "7"}, "none": None}
    for condition in ("lang=en", "lang == 'en'", "n>2", "n=3.0", "n!=4", "ok=true", "date>=2024-01-01", "meta.id<10"):
        assert parse_filter([condition]).passes(record), condition
    for condition in (
        "lang!=en",
        "n<3",
        "ok=false",
        "date<2024-01-01",
        "missing=1",
        "missing!=1",
        "none=None",
        "meta=1",
    ):
        assert not parse_filter([condition]).passes(record), condition
    assert not parse_filter(["lang=en", "n=4"]).passes(record)


def test_a_text_file_has_nothing_to_filter_by(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"a\.txt is one document"):
        documents(tmp_path / "a.txt", where=("lang=en",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset_dict.json", "[" * 100_000, "lists and objects inside one another"),
        ("dataset_dict.json", "[]", "has no list splits"),
        ("dataset_dict.json", '{"splits": ["../elsewhere"]}', "names the split '../elsewhere'"),
        ("dataset_dict.json", '{"splits": [[1]]}', "names the split"),
        ("state.json", "{}", "has no list _data_files"),
        ("state.json", '{"_data_files": [1]}', "without the name of a file"),
        ("state.json", '{"_data_files": [{"filename": ""}]}', "without the name of a file"),
    ],
)
def test_saved_datasets_that_are_none(tmp_path, name, content, message):
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        scan([tmp_path], ["*"])
