"""Hostile and damaged tars: one clear error each, and nothing is run, written or silently left out."""

import io
import tarfile

import pytest

from ingot.data.sources.file_parts import read_documents
from ingot.data.sources.ingest import Input, scan
from ingot.data.sources.tars import members


def tar_of(path, *names, **changes):
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1000
            for key, value in changes.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(b"x" * 1000))
    return path


def walk(path):
    return [m.name for m in members(path, ("txt", "json"))]


def test_members(tmp_path):
    path = tar_of(tmp_path / "a.tar", "a/b.c.txt", "d.json")
    first, second = members(path, ("txt", "json"))
    assert (first.key, first.extension, first.size, second.key) == ("a/b", "c.txt", 1000, "d")
    assert path.read_bytes()[first.offset : first.offset + 3] == b"xxx"


@pytest.mark.parametrize("name", ["a.pyd", "a.pickle", "a.pth", "a.txt.gz", "a", "a.npy", "b.jpg"])
def test_other_members_are_refused_by_name(tmp_path, name):
    with pytest.raises(ValueError, match=rf"a.tar: member '{name}' is refused: only .txt, .json"):
        walk(tar_of(tmp_path / "a.tar", "0.txt", name))


@pytest.mark.parametrize("name", ["../a.txt", "/a.txt", "x/../../a.txt"])
def test_names_that_lead_out(tmp_path, name):
    with pytest.raises(ValueError, match="leads out of the archive"):
        walk(tar_of(tmp_path / "a.tar", name))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("a.txt")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ValueError, match="not a regular file"):
        walk(tmp_path / "a.tar")


def test_a_huge_size_in_a_header(tmp_path):
    path = tmp_path / "a.tar"
    member = tarfile.TarInfo("a.txt")
    for size, message in ((1 << 60, "bytes, more than"), (1 << 29, "claims 536,870,912 bytes")):
        member.size = size
        path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"x" * 1024)
        with pytest.raises(ValueError, match=message):
            walk(path)


def damaged(path, begin, content):
    whole = bytearray(path.read_bytes())
    whole[begin : begin + len(content)] = content
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("begin", "content"),
    [(1536, b"\xff" * 512), (1536, b"\0" * 512), (3072, b"\0" * 1024), (0, b"\0" * 512), (0, b"no tar")],
    ids=["bad header", "zeroed block", "zeroed blocks", "zeroed beginning", "no tar"],
)
def test_damage_is_never_silent(tmp_path, begin, content):
    path = tar_of(tmp_path / "a.tar", *(f"{i}.txt" for i in range(5)))
    assert len(walk(path)) == 5
    damaged(path, begin, content)
    with pytest.raises(ValueError, match=r"a\.tar is damaged"):
        walk(path)


@pytest.mark.parametrize("size", [1536 + 100, 1536, 1536 + 800, 0, 7680])
def test_cut_at_any_place(tmp_path, size):
    path = tar_of(tmp_path / "a.tar", *(f"{i}.txt" for i in range(5)))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"a\.tar"):
        walk(path)


def test_compressed_tars_and_pipes(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(ValueError, match="compressed"):
        walk(tmp_path / "a.tar")
    with pytest.raises(ValueError, match="does not exist"):
        scan([f"pipe:touch {tmp_path / 'ran'}"], ["*"])
    assert not (tmp_path / "ran").exists()


def test_a_sample_without_text(tmp_path):
    sources, _ = scan([Input(tar_of(tmp_path / "a.tar", "0.txt", "1.en.txt"))], ["*"], validation_fraction=0)
    with pytest.raises(ValueError, match=r"sample 1: neither .txt nor .json, only .en.txt"):
        list(read_documents(sources, refuse_bad=True))


def test_a_member_of_negative_size_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo("0.txt")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[124:136] = b"\xff" * 11 + b"\xfb"  # -5 in base 256
    content[148:156] = b"        "
    content[148:156] = b"%06o\0 " % sum(content[:512])
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tar: member .0\.txt. claims -5 bytes"):
        list(members(tmp_path / "a.tar", ("txt",)))
