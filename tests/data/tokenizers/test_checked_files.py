"""Tokenizers made to fill the memory or to take for ever: one ValueError that names the folder."""

import json
import os
import shutil

import pytest

from ingot.data.tokenizers.load import load_tokenizer


@pytest.fixture
def folder(gpt2_like, tmp_path):
    shutil.copytree(gpt2_like, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def change(folder, **parts):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def refusal(folder) -> str:
    with pytest.raises(ValueError, match=str(folder)) as error:
        load_tokenizer(folder).encode("a" * 60 + "b")
    return str(error.value)


DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
MATCH = {"type": "Replace", "pattern": {"Regex": "."}, "content": "aaa"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
PREPEND = {"type": "Prepend", "prepend": "x" * 50}


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 40}},
        {"normalizer": {"type": "Sequence", "normalizers": [MATCH] * 20}},
        {"normalizer": {"type": "Sequence", "normalizers": [PREPEND] + [DOUBLE] * 5}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 40}},
        {"decoder": {"type": "Sequence", "decoders": [DOUBLE] * 40}},
        {
            "normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 6},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 6},
        },
    ],
)
def test_steps_that_make_a_text_longer_and_longer(parts, folder):
    change(folder, **parts)
    assert "times as long; at most 1000 is allowed" in refusal(folder)


def test_the_steps_of_released_tokenizers_are_allowed(folder):
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    steps = [{"type": "Prepend", "prepend": "\u2581"}, space, {"type": "NFKC"}]
    change(folder, normalizer={"type": "Sequence", "normalizers": steps})
    assert load_tokenizer(folder).encode("for value")


@pytest.mark.parametrize("where", ["normalizer", "pre_tokenizer"])
def test_a_pattern_that_tries_too_much(where, folder):
    pattern = {"pattern": {"Regex": "(a+)+$"}}
    split = {"type": "Split", **pattern, "behavior": "Isolated", "invert": False}
    change(folder, **{where: split if where == "pre_tokenizer" else {"type": "Replace", **pattern, "content": "x"}})
    assert "its library stops with: Onig: Regex search error: retry-limit" in refusal(folder)


@pytest.mark.parametrize("number", [10**7, 2**32 - 1, 2**70, -1, "7"])
def test_ids_that_no_vocabulary_has(number, folder):
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["vocab"]["new"] = number
    change(folder, model=values["model"])
    assert "tokenizer.json: " in refusal(folder)
    assert refusal(folder).endswith("is not a token id")


def test_a_vocabulary_with_holes_has_room_for_its_highest_id(folder):
    values = json.loads((folder / "tokenizer.json").read_text())
    letter = next(token for token in values["model"]["vocab"] if token == "b")
    values["model"]["vocab"][letter] = 5_000
    values["model"]["merges"] = []
    change(folder, model=values["model"])
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("b") == [5_000]
    assert tokenizer.vocab_size == 5_001


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_files_that_are_no_json(name, folder):
    (folder / name).write_text('{"a":' * 100_000)
    assert f"{name} has lists and objects inside one another" in refusal(folder)
    with (folder / name).open("r+b") as file:
        file.truncate(10**12)
    assert f"{name} has 1,000,000,000,000 bytes, more than" in refusal(folder)


def test_a_named_pipe_is_no_file_of_a_tokenizer(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    os.mkfifo(folder / "tokenizer.json")
    assert "has no tokenizer" in refusal(folder)
