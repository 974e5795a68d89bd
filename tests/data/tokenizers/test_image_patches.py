"""Images as tokens: what goes in comes out, and files that are cut are refused."""

import gzip
import struct

import numpy as np
import pytest

from ingot.data.tokenizers import image_patches
from ingot.data.tokenizers.image_patches import (
    Codebook,
    load_codebook,
    patches_of,
    read_idx,
    save_codebook,
    text_of_codes,
    transform_images,
    write_tokenizer,
)
from ingot.data.tokenizers.load import load_tokenizer

draw = np.random.default_rng(0)
FEW = draw.choice(
    np.array([0, 60, 255], np.uint8), (12, 1, 4)
)  # rows of patches of four pixels, of which there are few


def images(count: int) -> np.ndarray:
    """8 x 8 pixels whose 2 x 2 patches are a few."""
    kinds = draw.integers(0, 12, (count, 4, 4))
    return FEW[kinds, 0].reshape(count, 4, 4, 2, 2).transpose(0, 1, 3, 2, 4).reshape(count, 8, 8)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_files_are_read_plain_and_compressed(tmp_path):
    array = images(5)
    for name, content in (("a", idx(array)), ("a.gz", gzip.compress(idx(array)))):
        (tmp_path / name).write_bytes(content)
        assert (read_idx(tmp_path / name) == array).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GIF89a", "is not an idx file of bytes"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"has 5 bytes of data, and its header says \(2, 3\)"),
        (gzip.compress(idx(np.zeros(50, np.uint8)), mtime=0)[:20], "is damaged"),
        (gzip.compress(idx(np.zeros(50, np.uint8)), mtime=0)[:12] + b"\xff" * 20, "is damaged"),
        (b"\0\0\x08\x04" + b"\xff" * 16, r"has 0 bytes of data"),
        (b"\0\0\x08\x03" + b"\x80\0\0\0" * 2 + b"\0\0\0\4", r"has 0 bytes of data"),  # 2^64, which is 0 in int64
        (b"", "is not an idx file"),
    ],
    ids=["another kind", "cut", "cut and compressed", "damaged and compressed", "large", "overflow", "empty"],
)
def test_files_that_are_cut_or_of_another_kind_are_refused(content, message, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "x")


def test_patches_go_row_after_row():
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    assert patches_of(image, 2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]
    with pytest.raises(ValueError, match="patches of 3 pixels do not divide images of 4 x 4"):
        patches_of(image, 3)


def test_few_patches_come_back_as_they_were(tmp_path):
    array = images(50)
    codebook = Codebook.fit(array, 2, 64, seed=1)
    codes = codebook.encode(array)
    assert codes.shape == (50, 16)
    assert codes.max() < len(codebook.centres) <= 12
    assert (codebook.decode(codes, 4) == array).all()
    save_codebook(tmp_path / "codebook.json", codebook)
    assert (load_codebook(tmp_path / "codebook.json").encode(array) == codes).all()
    assert (np.diff(codebook.centres.sum(axis=1)) >= 0).all()


def test_the_tokenizer_knows_each_word(tmp_path):
    write_tokenizer(tmp_path, 20, ["zero", "one"])
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 5 + 20 + 2
    assert tokenizer.encode(text_of_codes(np.array([0, 19, 3])) + " one") == [5, 24, 8, 26]
    assert tokenizer.template(pair=False).apply([7])[0].tolist() == [2, 7, 3]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (2, 3, 4)


def test_moved_images_keep_what_stays_inside():
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3)
    assert transform_images(image, np.array([[1, 0]])).tolist() == [[[0, 0, 0], [1, 2, 3], [4, 5, 6]]]
    assert transform_images(image, np.array([[0, -1]])).tolist() == [[[2, 3, 0], [5, 6, 0], [8, 9, 0]]]
    assert (transform_images(image, np.zeros((1, 2))) == image).all()


def test_images_are_stretched_and_turned_about_their_middle():
    image, still = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3), np.zeros((1, 2))
    assert transform_images(image, still, np.array([np.pi / 2])).tolist() == [[[3, 6, 9], [2, 5, 8], [1, 4, 7]]]
    point = np.zeros((1, 3, 3), np.uint8)
    point[0, 1, 1] = 90
    assert transform_images(point, still, stretch_N2=np.array([[3, 1]])).tolist() == [
        [[0, 60, 0], [0, 90, 0], [0, 60, 0]]
    ]
    along = transform_images(point, still, np.array([np.pi / 2]), np.array([[3, 1]]))  # stretched first, then turned
    assert along.tolist() == [[[0, 0, 0], [60, 90, 60], [0, 0, 0]]]


@pytest.mark.parametrize("content", ["[" * 100_000, "[[1, 2", '{"a": 1}', "[[1, null]]", '[["x"]]', "[[1], [1, 2]]"])
def test_what_is_no_codebook(content, tmp_path):
    (tmp_path / "codebook.json").write_text(content)
    with pytest.raises(ValueError, match="is not a codebook"):
        load_codebook(tmp_path / "codebook.json")


def test_a_file_that_grows_without_end_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(image_patches, "MAX_IMAGE_BYTES", 10_000)
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(5_000_000)))
    with pytest.raises(ValueError, match="more than 10,000 bytes of images"):
        read_idx(tmp_path / "x.gz")
