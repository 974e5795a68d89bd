"""Documents to score: of text files, or of a corpus, each as token ids with its marks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ingot.data.corpus.shards import Corpus
from ingot.data.sources.file_parts import FilePart, kind_of, read_documents
from ingot.data.sources.text_files import read_text
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.data.writing.writer import add_special_tokens


def read_texts(paths: list[str]) -> Iterator[str]:
    """The text of each file, without a byte order mark and otherwise as it is, or of each line of a file of JSON lines.

    Raises:
        ValueError: no UTF-8, a line without "text", or a kind of file that is neither.
        OSError: a file that cannot be read.
    """
    for path in paths:
        kind = kind_of(path)
        if kind == "text":
            yield read_text(path, may_be_empty=True)
        elif kind == "lines":
            source = FilePart(Path(path).name, Path(path), 0, "", kind=kind)
            yield from (document.text for document in read_documents([source], refuse_bad=True))
        else:
            raise ValueError(f"{path} is a {kind} file; make a corpus of it with launcher/prepare.py first")


class Texts:
    """Tokenized texts, and the UTF-8 bytes of what is scored of them.

    A text opens with the mark that opens documents, from which its first token is predicted; that the text is over is
    not predicted, and is no part of its bytes. Without a mark the first token is not scored, nor are its bytes.
    """

    def __init__(self, texts: Iterator[str], tokenizer: Tokenizer):
        self._texts, self._tokenizer = texts, tokenizer
        self.num_bytes = self.num_documents = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        tokenizer = self._tokenizer
        mark = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        for text in self._texts:
            (ids,) = tokenizer.encode_arrays([text], np.dtype(np.int64))
            self.num_documents += 1
            self.num_bytes += len(text.encode())
            if mark is None:
                self.num_bytes -= len(tokenizer.decode(ids[:1]).encode())
            yield ids if mark is None else np.concatenate(([mark], ids))


def framed(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Tokenized texts with the marks that documents have in a corpus."""
    for text in texts:
        yield np.array(add_special_tokens(tokenizer.encode(text), tokenizer.bos_id, tokenizer.eos_id), dtype=np.int64)


def corpus_documents(corpus: Corpus) -> Iterator[np.ndarray]:
    """The documents of a corpus's split, as it stores them."""
    for shard in range(len(corpus.shards)):
        begin = 0
        for length in corpus.document_lengths(shard).tolist():
            yield corpus.read(shard, begin, begin + length)[0]
            begin += length
