import os
import shutil

import pytest

from ingot.data.sources.file_parts import AUTO, FilePart, read_documents
from ingot.data.sources.ingest import assign_splits, find_files, scan


def names(found):
    return [name for name, _ in found]


def test_globs_and_order(tmp_path):
    for name in ("b/x.txt", "a.txt", "b/y.md", "skip/z.txt", ".hidden/h.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    assert names(find_files([tmp_path], ["*.txt"], ["skip", ".*"])) == ["a.txt", "b/x.txt"]
    assert names(find_files([tmp_path], ["b/*"])) == ["b/x.txt", "b/y.md"]
    assert names(find_files([tmp_path / "b" / "y.md"], ["*.txt"])) == ["y.md"]  # given itself: globs do not apply
    with pytest.raises(ValueError, match="does not exist"):
        find_files([tmp_path / "nowhere"], ["*"])


def test_link_loops_end(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("text")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert names(find_files([tmp_path], ["*.txt"])) == ["sub/a.txt"]


def test_undecodable_and_empty_files_are_counted(tmp_path):
    (tmp_path / "good.txt").write_text("grüße")
    (tmp_path / "mark.txt").write_bytes(b"\xef\xbb\xbftext\r\n")
    (tmp_path / "latin.txt").write_bytes("grüße".encode("latin-1"))
    (tmp_path / "empty.txt").write_bytes(b" \n")
    sources, skipped = scan([tmp_path], ["*.txt"], validation_fraction=0)
    assert {d.name: d.text for d in read_documents(sources)} == {"good.txt": "grüße", "mark.txt": "text\r\n"}
    assert skipped.describe() == "1 not UTF-8 (first: latin.txt), 1 empty (first: empty.txt)"


def test_no_text_says_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"no text in .*\*\.txt, \*\.py.*none matches.*--include"):
        scan([tmp_path], ["*.txt", "*.py"])
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ValueError, match="1 not UTF-8"):
        scan([tmp_path], ["*.txt"])


def test_split_and_order_do_not_depend_on_place_or_company(text_folder, tmp_path):
    sources, _ = scan([text_folder], ["*.txt"], validation_fraction=0.3)
    splits = {s.name: s.split for s in sources}
    assert 5 < list(splits.values()).count("validation") < 31

    shutil.copytree(text_folder, tmp_path / "copy")
    for path in sorted((tmp_path / "copy").rglob("*.txt"))[::3]:
        path.unlink()
    fewer, _ = scan([tmp_path / "copy"], ["*.txt"], validation_fraction=0.3)
    assert len(fewer) == 40
    assert {s.name: s.split for s in fewer} == {s.name: splits[s.name] for s in fewer}
    kept = {s.name for s in fewer}
    assert [s.name for s in fewer] == [s.name for s in sources if s.name in kept]
    assert [s.name for s in sources] != sorted(splits)


def test_max_bytes_takes_a_beginning_of_the_order(text_folder):
    every, _ = scan([text_folder], ["*.txt"])
    some, _ = scan([text_folder], ["*.txt"], max_bytes=10_000)
    assert [s.name for s in some] == [s.name for s in every[: len(some)]]
    assert sum(s.size for s in some[:-1]) < 10_000 <= sum(s.size for s in some)
    other, _ = scan([text_folder], ["*.txt"], seed=1)
    assert [s.name for s in other] != [s.name for s in every]


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_each_split_has_a_document(tmp_path, fraction, count):
    sources = [FilePart(f"{i}.txt", tmp_path, 1, "", AUTO) for i in range(count)]
    assert {s.split for s in assign_splits(sources, fraction)} == {"train", "validation"}


def test_a_single_document_goes_to_training(tmp_path):
    assert [s.split for s in assign_splits([FilePart("a", tmp_path, 1, "", AUTO)], 0.9)] == ["train"]


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    sources, _ = scan([tmp_path], ["*.txt"])
    (tmp_path / "a.txt").write_text("behind")
    os.utime(tmp_path / "a.txt", (0, 0))
    with pytest.raises(ValueError, match="changed"):
        list(read_documents(sources))
