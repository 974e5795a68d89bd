"""The command that writes images as texts."""

import json
import re

import numpy as np
import pytest

from ingot.data.tokenizers.image_patches import load_codebook
from ingot.launcher import images as command
from ingot.launcher.config.images import NAMES
from ingot.launcher.runtime.exit_codes import BadInput
from tests.data.tokenizers.test_image_patches import draw, idx, images


def test_the_command_writes_texts_with_labels_and_the_same_codes_for_the_next_file(tmp_path, capsys):
    array, labels = images(30), draw.integers(0, 10, 30).astype(np.uint8)
    (tmp_path / "images").write_bytes(idx(array))
    (tmp_path / "labels").write_bytes(idx(labels))
    given = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels"), "--patch", "2"]
    for name, more in (
        ("train", ["--copies", "2"]),
        ("few", ["--count", "3"]),
        ("rest", ["--copies", "1", "--first", "27"]),
    ):
        assert command.main([*given, "--output", str(tmp_path / f"out/{name}.jsonl"), *more]) == 0
    read = lambda name: (tmp_path / f"out/{name}.jsonl").read_text().splitlines()  # noqa: E731
    train, few, rest = ([json.loads(line) for line in read(name)] for name in ("train", "few", "rest"))
    assert len(train) == 90
    assert train[:3] == few
    assert train[27:30] + train[57:60] == rest  # its copies too: what an image becomes does not depend on the others
    assert [record["label"] for record in train] == labels.tolist() * 3
    assert train[0]["name"] == NAMES[labels[0]]
    assert [record["text"] for record in train[30:60]] != [record["text"] for record in train[:30]]
    codebook = load_codebook(tmp_path / "out/codebook.json")
    codes = np.array([[int(word) for word in re.findall(r"p(\d+)", record["text"])] for record in train[:30]])
    assert (codebook.decode(codes, 4) == array).all()
    (tmp_path / "labels").write_bytes(idx(labels[:-1]))
    with pytest.raises(BadInput, match=r"has 29 labels, and .* 30 images"):
        command.main([*given, "--output", str(tmp_path / "out/x.jsonl")])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--first", "5"], "first 5 and count None name no images of the 5"),
        (["--first", "2", "--count", "4"], "first 2 and count 4 name no images of the 5"),
        (["--count", "0"], "count is 0; it must be a whole number"),
        (["--patch", "0"], "patch is 0; it must be a whole number"),
        (["--copies", "-1"], "copies is -1; it must be a whole number"),
    ],
)
def test_options_that_mean_nothing_are_refused_and_nothing_is_written(given, message, tmp_path):
    (tmp_path / "images").write_bytes(idx(images(5)))
    with pytest.raises(BadInput, match=message):
        command.main(["--images", str(tmp_path / "images"), "--output", str(tmp_path / "out/x.jsonl"), *given])
    assert not (tmp_path / "out").exists()
