"""Text to token ids and back: one interface over SentencePiece models and `transformers` tokenizer folders."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

SPECIAL_PIECES = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")  # ids 0..4 of every vocabulary trained here

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

# Longer stretches without a newline are cut for training only: the trainer drops what exceeds its sentence limit.
MAX_TRAINING_LINE = 2000
# Part of the result (the model file records it, and unigram's sums depend on it), hence not the machine's core count.
TRAINING_THREADS = 2


class Tokenizer:
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

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Like `encode` for each text. The result does not depend on `threads`."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens left out. Raises ValueError for ids outside of the vocabulary."""
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ValueError(f"token ids must lie in [0, {self.vocab_size}), found {min(ids)} to {max(ids)}")
        return self._decode([i for i in ids if i not in self.special_ids])

    def _decode(self, ids: list[int]) -> str:
        raise NotImplementedError

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
        mask_id = model.piece_to_id("<mask>")
        self.mask_id = mask_id if mask_id != model.unk_id() else None
        self.special_ids = frozenset(
            i for i in range(self.vocab_size) if model.is_control(i) or model.is_unknown(i) or i == self.mask_id
        )

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        return self._model.encode(list(texts), num_threads=threads)

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)


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
        self.vocab_size = len(tokenizer)
        first = lambda *ids: next((i for i in ids if i is not None), None)  # noqa: E731
        self.bos_id = first(tokenizer.bos_token_id, tokenizer.cls_token_id)
        self.eos_id = first(tokenizer.eos_token_id, tokenizer.sep_token_id)
        self.pad_id, self.mask_id = tokenizer.pad_token_id, tokenizer.mask_token_id
        self.special_ids = frozenset(tokenizer.all_special_ids)

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        # `threads` is the library's own affair here: it spreads a batch over all cores.
        if not texts:
            return []
        return self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
        )["input_ids"]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


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


def train_sentencepiece(
    texts: Iterable[str],
    folder: str | Path,
    vocab_size: int,
    model_type: str = "bpe",
    sample_bytes: int = 16_000_000,
) -> Tokenizer:
    """Train a vocabulary on the first `sample_bytes` bytes of `texts`, write `folder`/tokenizer.model, and open it.

    Bytes that no piece covers are spelled with 256 byte pieces, whitespace is kept exactly, runs of spaces can be
    single pieces, newline and tab are pieces of their own. The same texts give the same file, byte for byte.

    Raises ValueError for a `vocab_size` that the texts cannot fill (it names the largest possible one) or that cannot
    hold the characters of the texts.
    """
    import sentencepiece

    if model_type not in ("bpe", "unigram"):
        raise ValueError(f"tokenizer model type {model_type!r} is unknown: choose bpe or unigram")
    smallest = len(SPECIAL_PIECES) + 256 + 2
    if vocab_size < smallest:
        raise ValueError(
            f"a vocabulary of {vocab_size} is too small: special, byte and whitespace pieces take {smallest}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = _Buffer()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_training_lines(texts, sample_bytes),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n", "\t"],
            control_symbols=["<mask>"],  # a control symbol is never produced from text
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece="<pad>",
            unk_piece="<unk>",
            bos_piece="<s>",
            eos_piece="</s>",
            max_sentence_length=MAX_TRAINING_LINE * 4,
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_explain(str(error), vocab_size)) from error
    (folder / "tokenizer.model").write_bytes(model.content)
    tokenizer = load_tokenizer(folder)
    assert [tokenizer._model.id_to_piece(i) for i in range(len(SPECIAL_PIECES))] == list(SPECIAL_PIECES)
    return tokenizer


class _Buffer:
    """Receives the serialized model; written to disk only once training has succeeded."""

    content = b""

    def write(self, data: bytes) -> None:
        self.content += data


def _training_lines(texts: Iterable[str], sample_bytes: int) -> Iterator[str]:
    """Pieces of `texts` between newlines and tabs (those are pieces of their own, and the trainer drops any sentence
    with a tab), until `sample_bytes` bytes have passed."""
    seen = 0
    for text in texts:
        for line in re.split("[\n\t]+", text):
            for begin in range(0, len(line), MAX_TRAINING_LINE):
                if seen >= sample_bytes:
                    return
                part = line[begin : begin + MAX_TRAINING_LINE]
                seen += len(part.encode())
                yield part


def _explain(error: str, vocab_size: int) -> str:
    if match := re.search(r"value <= (\d+)", error):
        return (
            f"a vocabulary of {vocab_size} is too large for this text: the largest possible value is {match[1]} "
            f"(or give more text)"
        )
    if match := re.search(r"required_chars\. \d+ vs (\d+)", error):
        return (
            f"a vocabulary of {vocab_size} cannot hold the characters of this text: the smallest possible value is "
            f"{match[1]}"
        )
    return f"the tokenizer could not be trained: {error.strip()}"
