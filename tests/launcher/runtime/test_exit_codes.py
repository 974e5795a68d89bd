"""Messages that reach the user: ours as they are, those of Python and of libraries with the file and the place."""

import json
from pathlib import Path

import pytest

from ingot.data.sources.ingest import scan
from ingot.launcher.runtime.exit_codes import BadInput, bad_input
from ingot.safe_files import open_regular, read_json


def message(function, *arguments) -> str:
    with pytest.raises(BadInput) as error, bad_input():
        function(*arguments)
    return str(error.value)


def test_our_own_messages_are_not_changed(tmp_path):
    (tmp_path / "x.json").write_text("[")
    said = message(lambda: read_json(tmp_path / "x.json", max_bytes=10))
    assert said == f"{tmp_path / 'x.json'} is not JSON: Expecting value: line 1 column 2 (char 1)"
    assert message(scan, [tmp_path / "nowhere"], ["*"]) == f"input {tmp_path / 'nowhere'} does not exist"


def test_errors_of_the_system_name_their_file_already(tmp_path):
    said = message(open_regular, tmp_path / "nowhere")
    assert said == f"[Errno 2] No such file or directory: '{tmp_path / 'nowhere'}'"


def in_our_code(source: str):
    """A function of a module of Ingot."""
    names = {"__name__": "ingot.data.example", "Path": Path, "json": json}
    exec(source, names)
    return names["read"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("open(path, 'rb').read(-5)", "read length must be non-negative or -1"),
        ("list(zip([1], [1, 2], strict=True))", "zip() argument 2 is longer than argument 1"),
        ("int('x')", "invalid literal for int() with base 10: 'x'"),
        ("path.read_text(encoding='ascii')", "'ascii' codec can't decode byte"),
        ("json.loads('{')", "Expecting property name enclosed in double quotes"),
    ],
)
def test_errors_of_python_and_libraries_get_the_file_and_the_place(line, text, tmp_path):
    (tmp_path / "file").write_bytes(b"\xff")
    said = message(in_our_code(f"def read(path):\n    {line}"), tmp_path / "file")
    assert said.startswith(f"{tmp_path / 'file'}: {text}")
    assert " in ingot.data.example.read, which expected no such input; INGOT_TRACEBACK=1 " in said


def test_an_error_that_is_raised_again_stays_ours(tmp_path):
    source = "def read(path):\n    try:\n        raise ValueError('ours')\n    except ValueError:\n        raise"
    assert message(in_our_code(source), tmp_path) == "ours"
    source = "def read(path):\n    try:\n        int('x')\n    except ValueError as error:\n"
    assert message(in_our_code(source + "        raise ValueError('ours too') from error"), tmp_path) == "ours too"
