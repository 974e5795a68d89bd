"""Tokenizers that are a SentencePiece model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ingot.data.tokenizers.conversion import convert, obstacles, read_model
from ingot.data.tokenizers.identity import encoding_hash, model_file_hash
from ingot.data.tokenizers.tokenizer import (
    CHAT_TEMPLATE,
    Template,
    Tokenizer,
    read_template,
)

# Long texts are encoded in runs of lines of at least so many characters: the time of the encoder grows faster than the
# length of its text.
RUN_OF_LINES = 400


class SentencePieceTokenizer(Tokenizer):
    """A folder with a `tokenizer.model`.

    For models of `train_sentencepiece`, decode(encode(text)) == text for every text with one exception: the character
    U+2581, which SentencePiece uses for a space, becomes a space.
    """

    def __init__(self, folder: Path):
        import sentencepiece

        super().__init__(folder)
        self._model = model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self.vocab_size = model.vocab_size()
        present = lambda i: i if 0 <= i < self.vocab_size else None  # noqa: E731  (absent ids are -1)
        self.pad_id, self.bos_id, self.eos_id = (present(i) for i in (model.pad_id(), model.bos_id(), model.eos_id()))
        self.unk_id = present(model.unk_id())
        mask_id = model.piece_to_id("<mask>")
        self.mask_id = mask_id if mask_id != model.unk_id() else None
        self.special_ids = frozenset(
            i for i in range(self.vocab_size) if model.is_control(i) or model.is_unknown(i) or i == self.mask_id
        )
        if (folder / CHAT_TEMPLATE).is_file():
            self.chat_template = read_template(folder / CHAT_TEMPLATE)

    @cached_property
    def encoding_sha256(self) -> str:
        proto = read_model(self.folder / "tokenizer.model")
        if obstacles(proto):
            return model_file_hash(self.folder / "tokenizer.model", self.bos_id, self.eos_id, self.mask_id)
        settings = json.loads(convert(proto, [each.piece for each in proto.pieces], sorted(self.special_ids)).to_str())
        return encoding_hash(settings, self.bos_id, self.eos_id, self.mask_id)

    def pieces(self) -> list[str]:
        return [self._model.id_to_piece(i) for i in range(self.vocab_size)]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        found = self._model.encode(list(texts), return_type="offset_mapping")
        return [(each["ids"], np.array(each["offsets"], dtype=np.int64).reshape(-1, 2)) for each in found]

    def template(self, pair: bool) -> Template:
        begin, end = ([] if i is None else [i] for i in (self.bos_id, self.eos_id))
        return Template(tuple(begin), tuple(end), tuple(end))

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        return self._model.encode(list(texts), num_threads=threads)

    def encode_arrays(self, texts: Sequence[str], dtype: np.dtype, threads: int = 1) -> list[np.ndarray]:
        if not self._newlines_stand_alone:
            return super().encode_arrays(texts, dtype, threads)
        return self._encode_in_parts(texts, _runs_of_lines, dtype, threads)

    @cached_property
    def _newlines_stand_alone(self) -> bool:
        """Whether no piece contains a newline and other characters, as in each model trained here.

        Then a text may be split at its newlines and encoded in parts, with the same ids."""
        model = self._model
        newline = model.piece_to_id("\n")
        if newline == model.unk_id() or any(
            "\n" in model.id_to_piece(i) for i in range(self.vocab_size) if i != newline
        ):
            return False
        probes = ["x\n", "x\n x", "\n", "\n\n  x\n\t\n", " x \n", "\n\u0301x"]
        parts = lambda text: [i for line in text.splitlines(keepends=True) for i in model.encode(line)]  # noqa: E731
        return all(model.encode(text) == parts(text) and newline in model.encode(text) for text in probes)

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)


def _runs_of_lines(text: str) -> Iterator[str]:
    """`text` split after newlines, into parts of at least RUN_OF_LINES characters."""
    begin = 0
    while (end := text.find("\n", begin + RUN_OF_LINES) + 1) and end < len(text):
        yield text[begin:end]
        begin = end
    yield text[begin:]
