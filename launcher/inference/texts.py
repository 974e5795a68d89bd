"""The documents of text files or of a corpus, as token ids, to be scored."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ingot.data.corpus.shards import Corpus
from ingot.data.sources.file_parts import FilePart, kind_of, read_documents
from ingot.data.sources.text_files import read_text
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.data.writing.writer import add_special_tokens


def read_texts(paths: list[str]) -> Iterator[str]:
    """The text of each text file, without a byte order mark, and the "text" of each line of a JSON Lines file.

    Raises:
        ValueError: a file is not UTF-8 or is of another kind, or a line has no "text".
        OSError: a file cannot be read.
    """
    for path in paths:
        kind = kind_of(path)
        if kind == "text":
            yield read_text(path, may_be_empty=True)
        elif kind == "lines":
            source = FilePart(Path(path).name, Path(path), 0, "", kind=kind)
            yield from (document.text for document in read_documents([source], refuse_bad=True))
        else:
            raise ValueError(
                f"{path} is a {kind} file, which cannot be scored; first make a corpus of it with launcher/prepare.py"
            )


class TokenizedTexts:
    """Tokenized texts, and the number of UTF-8 bytes that are scored.

    Each text starts with the token that begins a document (or, without one, the token that ends a document), so that
    the text's first token is predicted too. The end of the text is not predicted. If the tokenizer has neither token,
    the first token of a text is not scored, and its bytes do not count.
    """

    def __init__(self, texts: Iterator[str], tokenizer: Tokenizer):
        self._texts, self._tokenizer = texts, tokenizer
        self.num_bytes = self.num_documents = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        tokenizer = self._tokenizer
        start_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        for text in self._texts:
            (ids,) = tokenizer.encode_arrays([text], np.dtype(np.int64))
            self.num_documents += 1
            self.num_bytes += len(text.encode())
            if start_id is None:
                self.num_bytes -= len(tokenizer.decode(ids[:1]).encode())
            yield ids if start_id is None else np.concatenate(([start_id], ids))


def tokenize_as_in_corpus(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Tokenized texts with the special tokens that documents have in a corpus."""
    for text in texts:
        yield np.array(add_special_tokens(tokenizer.encode(text), tokenizer.bos_id, tokenizer.eos_id), dtype=np.int64)


def corpus_documents(corpus: Corpus) -> Iterator[np.ndarray]:
    """The documents of a split of a corpus, as it stores them."""
    for shard in range(len(corpus.shards)):
        begin = 0
        for length in corpus.document_lengths(shard).tolist():
            yield corpus.read(shard, begin, begin + length)[0]
            begin += length
