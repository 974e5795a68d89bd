"""Files that somebody made to do harm: each ends in one error that names the file, at once and in little memory."""

import json
import os
import socket
from pathlib import Path

import pytest

from ingot.safe_files import open_regular, read_bytes, read_json


def refusal(path: Path, **options) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the callers look at the message)
        read_json(path, **{"max_bytes": 1_000_000, **options})
    assert str(path) in str(error.value)
    return str(error.value)


def test_what_is_json_is_read(tmp_path):
    value = {"a": [1, 2.5, None, {"b": "\u00e9 \U0001f600"}], "c": float("inf"), "": []}
    (tmp_path / "x").write_text(json.dumps(value))
    assert read_json(tmp_path / "x", max_bytes=1000) == value
    (tmp_path / "x").write_text("\ufeff" + json.dumps(value, ensure_ascii=False), encoding="utf-8")
    assert read_json(tmp_path / "x", max_bytes=1000) == value
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert read_json(tmp_path / "link", max_bytes=1000) == value


def test_what_is_not_there_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "x", max_bytes=10)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "x")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        descriptor = os.open(tmp_path, os.O_RDONLY)  # by its number: a path of a socket has at most 107 bytes
        listener.bind(f"/proc/self/fd/{descriptor}/socket")
        os.close(descriptor)
        assert refusal(tmp_path / "socket").endswith("is a socket, not a regular file")
    assert refusal(tmp_path / "fifo").endswith("is a named pipe, not a regular file")
    assert refusal(tmp_path / "zero").endswith("is a device, not a regular file")
    assert refusal(tmp_path).endswith("is a folder, not a regular file")


def test_a_file_without_end_is_not_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**13)
    assert "has 10,000,000,000,000 bytes, more than the 1,000,000 of such a file" in refusal(tmp_path / "sparse")
    (tmp_path / "x").write_bytes(b"1234")
    assert read_bytes(tmp_path / "x", max_bytes=4) == b"1234"
    with pytest.raises(ValueError, match="more than the 3"):
        read_bytes(tmp_path / "x", max_bytes=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b'{"a": 1, "b": 2, "a": 1}', "'a' stands twice in one object"),
        (b"9" * 10_000, "is not JSON"),
        (b'"\xff"', "is not UTF-8"),
        (b'{"a": "\\ud800"}', "is not UTF-8"),
        ('"x"'.encode("utf-16"), "is not UTF-8"),
        (b"[" * 300_000, "deep"),
        (b'{"a":' * 190_000, "deep"),
        (b"[" * 900 + b"]" * 900, "more than 64 deep"),
        (b'{"a":[' * 33 + b"]}" * 33, "more than 64 deep"),
    ],
)
def test_what_is_not_json(content, message, tmp_path):
    (tmp_path / "x").write_bytes(content)
    assert message in refusal(tmp_path / "x")


def test_the_depth_that_is_allowed_is_read(tmp_path):
    (tmp_path / "x").write_bytes(b'{"a":[' * 32 + b"]}" * 32)
    read_json(tmp_path / "x", max_bytes=1000)
    assert "more than 63 deep" in refusal(tmp_path / "x", max_depth=63)
