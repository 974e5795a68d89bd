"""Images as sequences of tokens: each patch becomes the nearest code of a codebook, row after row.

An image is written as a text of words such as "p17 p3 p255", and a tokenizer has these words as tokens. So images can
be used wherever text is used: in corpora, pretraining and fine-tuning.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from ingot.safe_files import read_bytes, read_json

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_IMAGE_BYTES, MAX_CODEBOOK_BYTES = 2**31, 2**26
_TYPES = {0x08: np.uint8}


def read_idx(path: str | Path) -> np.ndarray:
    """The array of a file in the idx format of MNIST (LeCun et al. 1998), plain or .gz; uint8.

    Raises:
        ValueError: another file format, another type than bytes, or a size that differs from its header.
    """
    content = read_bytes(Path(path), max_bytes=MAX_IMAGE_BYTES)
    if content[:2] == b"\x1f\x8b":
        try:
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(MAX_IMAGE_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if len(content) > MAX_IMAGE_BYTES:
            raise ValueError(f"{path} has more than {MAX_IMAGE_BYTES:,} bytes of images: divide it into several files")
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise ValueError(f"{path} is not an idx file of bytes")
    dims = content[3]
    shape = struct.unpack_from(f">{dims}I", content, 4) if len(content) >= 4 + 4 * dims else ()
    data = np.frombuffer(content, np.uint8, offset=min(len(content), 4 + 4 * dims))
    if data.size != math.prod(shape) or not shape:
        raise ValueError(
            f"{path} has {data.size} bytes of data, and its header says {shape}; it is truncated or damaged"
        )
    return data.reshape(shape)


def patches_of(images_NHW: np.ndarray, size: int) -> np.ndarray:
    """Square patches, row after row: uint8 [N, patches, size * size].

    Raises:
        ValueError: `size` does not divide height and width.
    """
    count, height, width = images_NHW.shape
    if height % size or width % size:
        raise ValueError(f"patches of {size} pixels do not divide images of {height} x {width}")
    patches = images_NHW.reshape(count, height // size, size, width // size, size).transpose(0, 1, 3, 2, 4)
    return patches.reshape(count, -1, size * size)


class Codebook:
    """The patch of each code.

    Args:
        centres: float32 [codes, size * size], from 0 to 255.
    """

    def __init__(self, centres: np.ndarray):
        self.centres = centres
        self.size = round(centres.shape[1] ** 0.5)

    @classmethod
    def fit(cls, images_NHW: np.ndarray, size: int, codes: int, seed: int) -> Codebook:
        """k-means over the patches of the images (scikit-learn's MiniBatchKMeans); the darkest code comes first.

        If the images have at most `codes` different patches, each of them is a code."""
        from sklearn.cluster import MiniBatchKMeans

        patches = patches_of(images_NHW, size).reshape(-1, size * size).astype(np.float32)
        centres = np.unique(patches, axis=0)
        if len(centres) > codes:
            means = MiniBatchKMeans(codes, random_state=seed, batch_size=8192, n_init=1, max_iter=20).fit(centres)
            centres = means.cluster_centers_.astype(np.float32)
        return cls(centres[np.argsort(centres.sum(axis=1), kind="stable")])

    def encode(self, images_NHW: np.ndarray) -> np.ndarray:
        """The nearest code of each patch: int64 [N, patches]."""
        patches = patches_of(images_NHW, self.size)
        flat = patches.reshape(-1, patches.shape[-1])
        distinct, index = np.unique(flat, axis=0, return_inverse=True)
        nearest = np.empty(len(distinct), np.int64)
        squares = (self.centres**2).sum(axis=1)
        for first in range(0, len(distinct), 16384):
            part = distinct[first : first + 16384].astype(np.float32)
            nearest[first : first + len(part)] = (squares - 2 * part @ self.centres.T).argmin(axis=1)
        return nearest[index.ravel()].reshape(patches.shape[:2])

    def decode(self, codes_NP: np.ndarray, width: int) -> np.ndarray:
        """The images of the codes: uint8 [N, H, W]. `width` is the width of an image in patches."""
        count, size = len(codes_NP), self.size
        patches = self.centres[codes_NP].reshape(count, -1, width, size, size).transpose(0, 1, 3, 2, 4)
        return patches.reshape(count, -1, width * size).round().clip(0, 255).astype(np.uint8)


def text_of_codes(codes: np.ndarray) -> str:
    """The text of an image."""
    return " ".join(f"p{code}" for code in codes)


def write_tokenizer(folder: Path, codes: int, names: list[str]) -> None:
    """Write a tokenizer for `transformers` whose words are the codes and `names` (such as names of labels)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*SPECIAL, *(f"p{code}" for code in range(codes)), *dict.fromkeys(names)]
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = [(mark, ids[mark]) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **special)
    wrapped.save_pretrained(str(folder))


def transform_images(
    images_NHW: np.ndarray, shift_N2: np.ndarray, turn_N: np.ndarray | None = None, stretch_N2: np.ndarray | None = None
) -> np.ndarray:
    """Images that are stretched and rotated about their centre and then shifted; bilinear, uint8, filled with zeros.

    Args:
        shift_N2: pixels down and to the right.
        turn_N: angle in radians, from the row axis to the column axis; 0 by default.
        stretch_N2: factors of height and width; 1 by default.
    """
    from scipy.ndimage import affine_transform

    count = len(images_NHW)
    turn_N = np.zeros(count) if turn_N is None else turn_N
    stretch_N2 = np.ones((count, 2)) if stretch_N2 is None else stretch_N2
    middle = (np.array(images_NHW.shape[1:]) - 1) / 2
    cos, sin = np.cos(turn_N), np.sin(turn_N)
    back_N22 = np.array([[cos, sin], [-sin, cos]]).transpose(2, 0, 1) / stretch_N2[:, :, None]  # new to old positions
    result = np.empty_like(images_NHW)
    for image, back, shift, into in zip(images_NHW, back_N22, shift_N2, result, strict=True):
        values = affine_transform(image, back, middle - back @ (middle + shift), output=np.float32, order=1)
        into[:] = values.round().clip(0, 255)
    return result


def save_codebook(path: Path, codebook: Codebook) -> None:
    path.write_text(json.dumps(codebook.centres.round(3).tolist()) + "\n")


def load_codebook(path: Path) -> Codebook:
    """Read a codebook.

    Raises:
        ValueError: the file is not a codebook.
    """
    try:
        centres = np.array(read_json(path, max_bytes=MAX_CODEBOOK_BYTES), np.float32)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a codebook: {error}") from error
    if centres.ndim != 2 or round(centres.shape[1] ** 0.5) ** 2 != centres.shape[1]:
        raise ValueError(f"{path} is not a codebook of square patches: its shape is {centres.shape}")
    return Codebook(centres)
