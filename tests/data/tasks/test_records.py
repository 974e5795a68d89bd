"""Each kind of file gives the same records with their places; what does not fit is refused with its place."""

import csv
import json
import os
from pathlib import Path

import datasets
import pytest

from ingot.data.tasks.records import ENDINGS, Record, read_records

ROOT = Path(__file__).resolve().parents[3]
ROWS = [
    {"sentence": 'a "quiet little film', "label": "1"},
    {"sentence": "grüße , said nobody", "label": "0"},
    {"sentence": "it's 'fine'", "label": "1"},
]
COLUMNS = ["sentence", "label"]


def write(path, rows=ROWS):
    """A file of `rows` of the kind that its name says."""
    if path.suffix == ".tsv":
        lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
        path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


def refused(path, match, content=None, columns=()):
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=match) as error:
        read_records(path, columns)
    assert path.name.partition(":")[0] in str(error.value)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a.tsv", "a.tsv, line 3"),
        ("a.csv", "a.csv, line 3"),
        ("a.JSONL", "a.JSONL, line 2"),
        ("a.json", "a.json, record 2"),
        ("a.parquet", "a.parquet, row 2"),
        ("folder", "folder, row 2"),
    ],
)
def test_every_kind_gives_the_same_records(tmp_path, name, place):
    write(tmp_path / name.lower()).rename(tmp_path / name)
    records = read_records(str(tmp_path / name), COLUMNS)
    assert [record.values for record in records] == ROWS
    assert records[1] == Record(ROWS[1], place)
    columns = "'title', 'text'; there are: 'sentence', 'label'"
    refused(tmp_path / name, rf"{name}, (line|record|row) \d: no column {columns}", columns=["title", "label", "text"])


def test_values_keep_their_types(tmp_path):
    rows = [{"label": 1, "score": 0.5, "parts": ["a", "b"], "none": None}, {"label": 0, "score": 2.0, "parts": []}]
    write(tmp_path / "a.jsonl", rows)
    assert [record.values for record in read_records(tmp_path / "a.jsonl", ["label"])] == rows
    rows[1]["none"] = None
    write(tmp_path / "a.parquet", rows)
    assert [record.values for record in read_records(tmp_path / "a.parquet", ["label"])] == rows
    write(tmp_path / "a.csv", [{"label": "1", "text": ""}])
    assert read_records(tmp_path / "a.csv", [])[0].values == {"label": "1", "text": ""}


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_byte_order_mark_and_windows_line_ends(tmp_path, name):
    content = write(tmp_path / name).read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.removesuffix(b"\r\n"))
    assert [record.values for record in read_records(tmp_path / name, COLUMNS)] == ROWS


def test_a_quote_in_tsv_is_a_character_and_in_csv_a_quote(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"open\t1\n""\t0\nline\u2028end\x85\t1\n', encoding="utf-8")
    assert [r.values["text"] for r in read_records(tmp_path / "a.tsv", ["text"])] == [
        '"open',
        '""',
        "line\u2028end\x85",
    ]
    long = "x" * 200_000  # beyond the csv module's own limit
    (tmp_path / "a.csv").write_bytes(f'text,label\n"two\nlines, ""so""",1\n\n{long},0\n'.encode())
    records = read_records(tmp_path / "a.csv", ["text"])
    assert [r.values["text"] for r in records] == ['two\nlines, "so"', long]
    assert [r.where for r in records] == ["a.csv, line 2", "a.csv, line 5"]
    assert csv.field_size_limit() == 131_072


def test_blank_lines_are_no_rows(tmp_path):
    for name, content in [
        ("a.tsv", "a\tb\n\n1\t2\n\n"),
        ("a.csv", "\na,b\n\n1,2\n\n"),
        ("a.jsonl", '\n\n{"a":"1","b":"2"}\n'),
    ]:
        (tmp_path / name).write_text(content)
        assert [(r.values, r.where) for r in read_records(tmp_path / name, ["b"])] == [
            ({"a": "1", "b": "2"}, f"{name}, line 3" if name != "a.csv" else "a.csv, line 4")
        ]


BROKEN = [
    ("a.tsv", "a\tb\n1\t2\n1\n", "line 3: 1 fields, and the header has 2; a .tsv has no quoting"),
    ("a.tsv", "a\tb\n1\t2\t\n", "line 2: 3 fields"),
    ("a.tsv", "a\tb\ta\n1\t2\t3\n", "line 1: the header has 'a' more than once"),
    ("a.tsv", "a\tb\n", "holds no rows"),
    ("a.csv", 'a,b\n"1\n",2\n1,2,3\n', "line 4: 3 fields, and the header has 2; put values"),
    ("a.csv", 'a,b\n1,2\n1,"2\n\n', "line 3: not valid CSV: unexpected end of data"),
    ("a.csv", 'a,b\n"1"2,2\n', "line 2: not valid CSV"),
    ("a.csv", "a,a\n1,2\n", "line 1: the header has 'a' more than once"),
    ("a.csv", "a,b", "holds no rows"),
    ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not valid JSON"),
    ("a.jsonl", '{"a": 1}\n[1]\n', "line 2 is a JSON list, not an object"),
    ("a.jsonl", '{"a": "\\uD800"}\n', "line 1 has a text that is not valid Unicode"),
    ("a.jsonl", "[" * 100_000, "line 1 is not valid JSON"),
    ("a.json", '{"a": 1}', "is a JSON dict, not a list of objects"),
    ("a.json", '[{"a": 1}, 2]', "record 2 is a JSON int, not an object"),
    ("a.json", '{"a": 1}\n{"a": 2}\n', r"not valid JSON: Extra data.*name it \.jsonl"),
    ("a.json", "[]", "holds no rows"),
    ("a.parquet", "PAR1", "is damaged or no parquet file"),
    ("a.txt", "text", "ends in none of " + ", ".join(ENDINGS)),
    *((f"a{ending}", "", "is empty") for ending in ENDINGS[:4]),
    *((f"a{ending}", " \n\r\n", "is empty") for ending in ENDINGS[:4]),
    *((f"a{ending}", b"a\tb\n\xff\t1\n", "is not UTF-8") for ending in ENDINGS[:4]),
    ("a.tsv", "a\tb\n1\t2\n".encode("utf-16"), "is not UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "reason"), BROKEN)
def test_what_is_broken_is_refused_with_its_place(tmp_path, name, content, reason):
    refused(tmp_path / name, reason, content)


def test_each_record_must_have_the_columns(tmp_path):
    content = '{"a": 1, "b": "\\ud83d\\ude00"}\n{"a": 2}\n'
    refused(tmp_path / "a.jsonl", "line 2: no column 'b'; there are: 'a'", content, columns=["b"])
    assert read_records(tmp_path / "a.jsonl", ["a"])[0].values["b"] == "\U0001f600"
    refused(tmp_path / "a.json", "record 1: no column 'b'; there are: none", "[{}]", columns=["b"])


def test_splits_of_a_saved_dataset(tmp_path):
    whole = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=whole.select([2, 0]), test=whole.select([1])).save_to_disk(tmp_path / "both")
    records = read_records(f"{tmp_path}/both:train", COLUMNS)
    assert records == [Record(ROWS[2], "both:train, row 1"), Record(ROWS[0], "both:train, row 2")]
    assert read_records(tmp_path / "both" / "test", COLUMNS) == [Record(ROWS[1], "test, row 1")]
    refused(tmp_path / "both", "has several splits; name one as .*both:SPLIT; there are: train, test")
    refused(tmp_path / "both:dev", "has no split 'dev'.*there are: train, test")
    refused(tmp_path / "both/test:train", "has no splits; leave out :train")
    datasets.Dataset.from_dict({"a": []}).to_parquet(tmp_path / "nothing.parquet")
    refused(tmp_path / "nothing.parquet", "holds no rows", columns=["a"])
    (tmp_path / "other").mkdir()
    refused(tmp_path / "other", "cannot be opened as what `save_to_disk` of datasets writes")


def test_a_file_that_is_not_there(tmp_path):
    for ending in ENDINGS:
        with pytest.raises(FileNotFoundError):
            read_records(tmp_path / f"a{ending}", [])
    refused(tmp_path / "nowhere", "is not a folder, and its name ends in none of")


def test_sst2_has_the_rows_that_it_should():
    folder = Path(os.environ.get("INGOT_SHARED_DATA", ROOT.parent / "shared/data")) / "sst2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    for name, count in {"train": 60_614, "dev": 6_735, "test": 872}.items():
        records = read_records(folder / f"{name}.tsv", COLUMNS)
        assert len(records) == count
        assert {record.values["label"] for record in records} == {"0", "1"}
        assert records[-1].where == f"{name}.tsv, line {count + 1}"
