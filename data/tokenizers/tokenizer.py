"""Text to token ids and back: one interface over SentencePiece models and `transformers` tokenizer folders."""

from __future__ import annotations

import hashlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import numpy as np

SPECIAL_PIECES = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")  # ids 0..4 of every vocabulary trained here
FIM_PIECES = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>")

# A tokenizer is these files and nothing else in its folder, so weights and the like that lie beside it do not change
# its hash. config.json stands here because many released folders name their tokenizer's class only there.
TOKENIZER_FILES = (
    "added_tokens.json",
    "config.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)

# Long texts are encoded in runs of lines of at least so many characters: the encoder's work grows faster than its text.
RUN_OF_LINES = 400


@dataclass(frozen=True)
class Template:
    """before, first text, between, second text, after; without a second text before, text, after.

    `second_type` is the token type of the second text and of what is behind it; all else is of type 0.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    second_type: int = 1

    def frame(self, first: Sequence[int], second: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and token types of a text or pair, each int64."""
        head = [*self.before, *first, *(self.between if second is not None else ())]
        tail = [*(second or ()), *self.after]
        types = np.zeros(len(head) + len(tail), dtype=np.int64)
        if second is not None:
            types[len(head) :] = self.second_type
        return np.array(head + tail, dtype=np.int64), types


class Tokenizer(ABC):
    """What every tokenizer offers; made by `load_tokenizer`.

    `bos_id` is the token that opens a sequence (BERT's [CLS]), `eos_id` the one that closes it (BERT's [SEP]); they are
    the same id for GPT-2. Each of the four ids is None where the vocabulary has no such token.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    mask_id: int | None
    special_ids: frozenset[int]

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = tokenizer_files(folder)
        self.sha256 = hash_files(self.files)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` without special tokens; text that spells one ("</s>") is plain text."""
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Like `encode` for each text. The result does not depend on `threads`."""

    def encode_arrays(self, texts: Sequence[str], dtype: np.dtype, threads: int = 1) -> list[np.ndarray]:
        """`encode_batch` as one array for each text: the way that corpora are tokenized."""
        return [np.array(ids, dtype=dtype) for ids in self.encode_batch(texts, threads)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens left out. Raises ValueError for ids outside of the vocabulary."""
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ValueError(f"token ids must lie in [0, {self.vocab_size}), found {min(ids)} to {max(ids)}")
        return self._decode([i for i in ids if i not in self.special_ids])

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """`decode` of ids that are in the vocabulary and not special."""

    @abstractmethod
    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        """Like `encode` for each text, and int64 (tokens, 2): where in the text, in characters, each token begins and
        ends. A space before a word may belong to its first token; of a character that is several tokens, all but one
        are empty."""

    @abstractmethod
    def template(self, pair: bool) -> Template:
        """How a text, or a pair, is framed by special tokens for a model that reads it as a whole."""

    @abstractmethod
    def pieces(self) -> list[str]:
        """The vocabulary as the tokenizer spells it, by id."""

    def find(self, piece: str) -> int | None:
        """The id of a special token such as <fim_prefix>; None where the vocabulary has none of that spelling."""
        return self._by_spelling.get(piece)

    @cached_property
    def _by_spelling(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces())}

    def save(self, folder: str | Path) -> None:
        """Copy the tokenizer's files, byte for byte, so that the copy has the same `sha256`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.files:
            shutil.copyfile(file, folder / file.name)


class SentencePieceTokenizer(Tokenizer):
    """A folder with a `tokenizer.model`.

    For models from `train_sentencepiece`, decode(encode(text)) == text for every text, except that the character
    U+2581, SentencePiece's own sign for a space, comes back as a space.
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
        runs, num_runs = [], []
        for text in texts:
            before = len(runs)
            runs.extend(_runs_of_lines(text))
            num_runs.append(len(runs) - before)
        encoded = iter(self._model.encode(runs, num_threads=threads))
        result = []
        for number in num_runs:
            parts = list(islice(encoded, number))
            ids = parts[0] if number == 1 else list(chain.from_iterable(parts))
            result.append(np.array(ids, dtype=dtype))
        return result

    @cached_property
    def _newlines_stand_alone(self) -> bool:
        """Whether no piece reaches across a newline, as in each model trained here: then a text may be cut at its ends
        of lines, encoded in parts, and gives the same ids."""
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
    """`text` cut after newlines, RUN_OF_LINES characters or more a part."""
    begin = 0
    while (end := text.find("\n", begin + RUN_OF_LINES) + 1) and end < len(text):
        yield text[begin:end]
        begin = end
    yield text[begin:]


class PretrainedTokenizer(Tokenizer):
    """A folder that `transformers.AutoTokenizer` opens. Nothing is downloaded and no code of the folder is run."""

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        super().__init__(folder)
        try:
            self._tokenizer = tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_fast=True
            )
        except Exception as error:  # transformers raises many kinds here, all of them meaning "cannot be opened"
            raise ValueError(f"the tokenizer in {folder} cannot be opened by transformers: {error}") from error
        self.class_name = type(tokenizer).__name__
        self.vocab_size = len(tokenizer)
        first = lambda *ids: next((i for i in ids if i is not None), None)  # noqa: E731
        self.bos_id = first(tokenizer.bos_token_id, tokenizer.cls_token_id)
        self.eos_id = first(tokenizer.eos_token_id, tokenizer.sep_token_id)
        self.pad_id, self.mask_id = tokenizer.pad_token_id, tokenizer.mask_token_id
        self.special_ids = frozenset(tokenizer.all_special_ids)

    def pieces(self) -> list[str]:
        return self._tokenizer.convert_ids_to_tokens(range(self.vocab_size))

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        if not texts:
            return []
        found = self._encode(texts, return_offsets_mapping=True)
        offsets = [np.array(each, dtype=np.int64).reshape(-1, 2) for each in found["offset_mapping"]]
        return list(zip(found["input_ids"], offsets, strict=True))

    def _encode(self, texts: Sequence[str], **options: bool) -> Mapping[str, list]:
        plain = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False}
        return self._tokenizer(list(texts), verbose=False, **plain, **options)

    def template(self, pair: bool) -> Template:
        # What a tokenizer adds is configured in many ways; a short text shows it.
        first, second = self.encode_batch(["a", "b"])
        found = self._tokenizer("a", "b" if pair else None, return_token_type_ids=True, verbose=False)
        ids, types = found["input_ids"], found.get("token_type_ids")
        begin = _find(ids, first, 0)
        end = begin + len(first)
        if not pair:
            return Template(tuple(ids[:begin]), (), tuple(ids[end:]), 0)
        place = _find(ids, second, end)
        rest = place + len(second)
        return Template(tuple(ids[:begin]), tuple(ids[end:place]), tuple(ids[rest:]), types[place] if types else 0)

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        # `threads` is the library's own affair here: it spreads a batch over all cores.
        if not texts:
            return []
        return self._encode(texts)["input_ids"]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _find(ids: list[int], part: list[int], begin: int) -> int:
    """Where `part` stands in `ids`, from `begin` on."""
    return next(i for i in range(begin, len(ids)) if ids[i : i + len(part)] == part)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Open a tokenizer folder. Raises ValueError when there is none, or one that cannot be read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"tokenizer folder {folder} does not exist")
    names = {file.name for file in tokenizer_files(folder)}
    if names & {"tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt"}:
        return PretrainedTokenizer(folder)
    if "tokenizer.model" in names:
        try:
            return SentencePieceTokenizer(folder)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{folder / 'tokenizer.model'} is not a readable SentencePiece model: {error}") from error
    raise ValueError(
        f"{folder} holds no tokenizer: expected a SentencePiece tokenizer.model, or the files of a transformers "
        f"tokenizer (tokenizer.json, tokenizer_config.json, ...)"
    )


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of `folder` that make up its tokenizer, by name."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def hash_files(files: Iterable[Path]) -> str:
    """sha256 over names and contents, in hex; where the files lie does not enter."""
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
