"""Text to token ids and back: the interface of all tokenizers, and the files that they are."""

from __future__ import annotations

import copy
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import Self

import numpy as np

from ingot.data.tokenizers.checked_files import MAX_FILE_BYTES
from ingot.data.tokenizers.identity import hash_files, whole_hash
from ingot.safe_files import read_bytes, read_json

SPECIAL_PIECES = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")  # ids 0..4 of every vocabulary trained here
FIM_PIECES = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>")

# A tokenizer is these files of its folder. config.json is one of them because many released folders name the class of
# their tokenizer only there. It and generation_config.json also name the tokens that end a text.
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
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

NOT_IN_OLD_HASHES = ("chat_template.jinja", "generation_config.json")
"""Files that the hash of a tokenizer in manifests of version 0.1.0 did not cover."""

CHAT_TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
DEFAULT_CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{{- message.role + ":\\n" }}
{%- if message.role == "assistant" %}
{%- generation %}{{- message.content + eos_token }}{%- endgeneration %}
{%- else %}
{{- message.content + eos_token }}
{%- endif %}
{{- "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "assistant:\\n" }}
{%- endif %}
"""
"""For tokenizers that have no template of their own. A turn ends with the end token, which no text can spell."""

ENCODED_AT_ONCE = 1_000_000  # characters


@dataclass(frozen=True)
class Template:
    """The special tokens around a text or pair: before, first text, between, second text, after.

    Without a second text: before, text, after. `second_type` is the token type of the second text and of `after` behind
    it; all other tokens have type 0.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    second_type: int = 1

    def apply(self, first: Sequence[int], second: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and token types of a text or pair, each int64."""
        head = [*self.before, *first, *(self.between if second is not None else ())]
        tail = [*(second or ()), *self.after]
        types = np.zeros(len(head) + len(tail), dtype=np.int64)
        if second is not None:
            types[len(head) :] = self.second_type
        return np.array(head + tail, dtype=np.int64), types


class Tokenizer(ABC):
    """The interface of all tokenizers; `load_tokenizer` makes one.

    Attributes:
        bos_id: the token that begins a sequence (BERT's [CLS]).
        eos_id: the token that ends a sequence (BERT's [SEP]); for GPT-2 the same as `bos_id`.
        pad_id, mask_id: as their names say. Each of the four ids is None if the vocabulary has no such token.
        special_ids: all special tokens.
        files_sha256: of the tokenizer's files, in hex: for copies that must be complete.
        settings_folder: where generation_config.json and config.json are; a model that was given another tokenizer sets
            its own folder.
        chat_template: how a chat becomes a text, a Jinja template; None if the tokenizer has none.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    mask_id: int | None
    special_ids: frozenset[int]
    chat_template: str | None = None
    keep: object = None
    """What must live as long as the tokenizer: its temporary folder, if it has one."""

    def __init__(self, folder: Path):
        self.folder = self.settings_folder = folder
        self.files = tokenizer_files(folder)
        self.files_sha256 = hash_files(self.files)

    @property
    @abstractmethod
    def encoding_sha256(self) -> str:
        """What a text becomes, as a hash in hex: equal for all folders that give the same ids; see identity.py."""

    @property
    def sha256(self) -> str:
        """What the tokenizer is, in hex: how it encodes, and its chat template."""
        return whole_hash(self.encoding_sha256, self.chat_template or DEFAULT_CHAT_TEMPLATE)

    @property
    def old_sha256(self) -> str:
        """The hash that manifests of version 0.1.0 have: of the files that were copied then."""
        return hash_files(file for file in self.files if file.name not in NOT_IN_OLD_HASHES)

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, in the order of generation_config.json (or config.json), which may name several;
        the end token is always one.

        Raises:
            ValueError: one of the files is not a JSON object.
        """
        found = self.ends_in("generation_config.json") or self.ends_in("config.json")
        return tuple(dict.fromkeys([*found, *([] if self.eos_id is None else [self.eos_id])]))

    def ends_in(self, name: str) -> list[int]:
        """The tokens that a file of settings_folder names as eos_token_id; none without such a file."""
        if not (self.settings_folder / name).is_file():
            return []
        value = read_object(self.settings_folder / name).get("eos_token_id")
        return [i for i in (value if isinstance(value, list) else [value]) if type(i) is int and i >= 0]

    @property
    def named_tokens(self) -> dict[str, str]:
        """Special tokens by the names that chat templates use, beyond bos, eos, pad and mask."""
        return {}

    @cached_property
    def special_pieces(self) -> dict[str, int]:
        """The spelling of each token that `encode` never makes of a text, to its id."""
        return {self.pieces()[i]: i for i in sorted(self.special_ids)}

    def encode_templates(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        """`encode_with_offsets` of texts in which a spelled special token means the token."""
        return [self._encode_template(text) for text in texts]

    def _encode_template(self, text: str) -> tuple[list[int], np.ndarray]:
        pattern = "|".join(map(re.escape, sorted(self.special_pieces, key=len, reverse=True))) or "(?!)"
        ids: list[int] = []
        offsets, begin = [np.empty((0, 2), np.int64)], 0
        for found in [*re.finditer(pattern, text), None]:
            ((inner, at),) = self.encode_with_offsets([text[begin : found.start() if found else None]])
            ids += inner
            offsets.append(at + begin)
            if found:
                ids.append(self.special_pieces[found[0]])
                offsets.append(np.array([found.span()]))
                begin = found.end()
        return ids, np.concatenate(offsets)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without special tokens. A special token that is spelled in the text ("</s>") is plain text."""
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """`encode` of each text. The result does not depend on `threads`."""

    def encode_arrays(self, texts: Sequence[str], dtype: np.dtype, threads: int = 1) -> list[np.ndarray]:
        """`encode_batch` with one array for each text. Corpora are tokenized with this."""
        return [np.array(ids, dtype=dtype) for ids in self.encode_batch(texts, threads)]

    def _encode_in_parts(
        self, texts: Sequence[str], divide: Callable[[str], Iterable[str]], dtype: np.dtype, threads: int
    ) -> list[np.ndarray]:
        """`encode_arrays` of texts in parts, which have the same ids, and of which a few are encoded at once."""
        found: list[list[np.ndarray]] = [[] for _ in texts]
        for batch in _batches((number, part) for number, text in enumerate(texts) for part in divide(text)):
            encoded = self.encode_batch([part for _, part in batch], threads)
            for number, group in groupby(zip(batch, encoded, strict=True), key=lambda item: item[0][0]):
                found[number].append(np.array(list(chain.from_iterable(ids for _, ids in group)), dtype=dtype))
        return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in found]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens. Raises ValueError for ids outside the vocabulary."""
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ValueError(f"token ids must be in [0, {self.vocab_size}), found {min(ids)} to {max(ids)}")
        hidden = self._hidden_ids
        return self._decode([i for i in ids if i not in hidden])

    @cached_property
    def _hidden_ids(self) -> frozenset[int]:
        return self.special_ids | {*self.special_pieces.values()}

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """`decode` of ids that are in the vocabulary and not special."""

    @abstractmethod
    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        """`encode` of each text, and int64 [tokens, 2]: the characters of the text where each token begins and ends.

        A space before a word may belong to its first token. If one character is several tokens, all but one of them are
        empty."""

    @abstractmethod
    def template(self, pair: bool) -> Template:
        """The special tokens around a text, or a pair of texts, as the tokenizer itself adds them."""

    @abstractmethod
    def pieces(self) -> list[str]:
        """The spelling of each id in the vocabulary."""

    def find(self, piece: str) -> int | None:
        """The id of a special token such as <fim_prefix>; None if the vocabulary has no token with that spelling."""
        return self._by_spelling.get(piece)

    @cached_property
    def _by_spelling(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces())}

    def save(self, folder: str | Path) -> None:
        """Copy the tokenizer's files without a change, and write its chat template if it is in none of them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.files:
            shutil.copyfile(file, folder / file.name)
        settings = self.settings_folder / "generation_config.json"
        if settings.is_file():
            shutil.copyfile(settings, folder / settings.name)
        for more in sorted((self.folder / MORE_TEMPLATES).glob("*.jinja")):
            (folder / MORE_TEMPLATES).mkdir(exist_ok=True)
            shutil.copyfile(more, folder / MORE_TEMPLATES / more.name)
        if self._new_chat_template:
            (folder / CHAT_TEMPLATE).write_text(self._new_chat_template, encoding="utf-8", newline="")

    _new_chat_template: str | None = None

    def with_chat_template(self) -> Self:
        """The same tokenizer, with the default chat template if it has none.

        Raises:
            ValueError: it has no token to end a turn.
        """
        if self.chat_template is not None:
            return self
        if self.eos_id is None:
            raise ValueError(
                f"the tokenizer {self.folder} has neither a chat template nor an end token for one; write "
                f"{self.folder / CHAT_TEMPLATE}, or set task.chat_template to never"
            )
        other = copy.copy(self)
        other.chat_template = other._new_chat_template = DEFAULT_CHAT_TEMPLATE
        other.files_sha256 = hash_files(self.files, {CHAT_TEMPLATE: DEFAULT_CHAT_TEMPLATE.encode()})
        return other


def _batches(parts: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Groups of about ENCODED_AT_ONCE characters: lists of ids need many times the memory of their text."""
    batch: list[tuple[int, str]] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part[1])
        if size >= ENCODED_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of `folder` that belong to its tokenizer, sorted by name."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def read_template(path: Path) -> str:
    """A chat template. Raises ValueError if it is not UTF-8, or too large."""
    try:
        return read_bytes(path, max_bytes=MAX_FILE_BYTES).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None


def read_object(path: Path) -> dict:
    """The object in a JSON file. Raises ValueError for anything else."""
    values = read_json(path, max_bytes=MAX_FILE_BYTES)
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object")
    return values
