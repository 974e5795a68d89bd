"""Sentences whose words have a label each, in the columns of the CoNLL shared tasks, and the schemes of labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ingot.data.sources.text_files import read_text

DOCUMENT_START = "-DOCSTART-"
SCHEMES = ("IOB2", "IOB1", "BIOES")
MIXED = "IOB2 and IOB1"


@dataclass(frozen=True)
class TaggedSentence:
    """`words`, one of `labels` for each, `where` the first word is, and the document's number in the file, from 0."""

    words: list[str]
    labels: list[str]
    where: str
    document: int


def read_conll(path: str | Path, word_column: int = 0, label_column: int | None = -1) -> list[TaggedSentence]:
    """The sentences of a file with a word a line and a blank line after each sentence (Tjong Kim Sang and De Meulder
    2003).

    Columns are separated by tabs where each line has one, otherwise by spaces or tabs. Only a file with tabs has
    comments, lines that begin with "# " or with "#" and have no tab: elsewhere "# ..." is a word and its label.
    Lines with -DOCSTART- begin a document and are not a sentence. In CoNLL-U, with ten columns and the words in column
    1, ranges of words ("3-4") and empty nodes ("3.1") are skipped.

    Args:
        word_column: counted from 0, or from the end where it is negative; so is `label_column`. Without a label column
            sentences have no labels.

    Raises:
        ValueError: not UTF-8, empty, or without a sentence; "FILE, line N: ..." for a line with more or fewer columns
            than the first, with too few for the columns asked for, or with nothing in one of them.
        OSError: a file that cannot be read.
    """
    lines = [line.strip(" \r") for line in read_text(path).split("\n")]
    has_tabs = _has_tabs(lines)
    sentences: list[TaggedSentence] = []
    first: tuple[int, int] | None = None  # the number of the first word's line, and that of its columns
    words: list[str] = []
    labels: list[str] = []
    document = start = 0

    def finish() -> None:
        nonlocal words, labels
        if words:
            sentences.append(TaggedSentence(words, labels, f"{Path(path).name}, line {start}", document))
        words, labels = [], []

    for number, line in enumerate(lines, 1):
        if not line.strip("\t "):
            finish()
            continue
        if line.startswith(DOCUMENT_START):
            finish()
            document += bool(sentences) and sentences[-1].document == document
            continue
        if has_tabs and line.startswith("#") and (line.startswith("# ") or "\t" not in line):
            continue
        columns = line.split("\t") if has_tabs else re.split(r"[ \t]+", line.strip("\t "))
        location = f"{path}, line {number}"
        if first is None:
            first = number, len(columns)
            _check_columns(location, len(columns), word_column, label_column)
        if len(columns) != first[1]:
            raise ValueError(f"{location}: {len(columns)} columns, and line {first[0]} has {first[1]}")
        if len(columns) == 10 and word_column == 1 and re.fullmatch(r"\d+[-.]\d+", columns[0]):
            continue
        if not columns[word_column] or (label_column is not None and not columns[label_column]):
            raise ValueError(f"{location}: no {'label' if columns[word_column] else 'word'} in its column")
        start = start if words else number
        words.append(columns[word_column])
        if label_column is not None:
            labels.append(columns[label_column])
    finish()
    if not sentences:
        raise ValueError(f"{path} holds no sentence")
    return sentences


def scheme_of(sentences: Sequence[Sequence[str]]) -> str:
    """The scheme that the labels of all `sentences` follow: the first that fits of

    IOB2   each entity begins with B- and goes on with I-
    IOB1   entities have I-; B- only begins one right after another of its type (Ramshaw and Marcus 1995)
    BIOES  B- begins, I- goes on and E- ends an entity; S- is one of a single word

    with O outside of entities. Two of them can fit only where there is no entity. Labels of one type may omit "-TYPE".
    If none fits and all labels are O, B- or I-, the scheme is MIXED: an I- that does not continue an entity of its type
    begins one, as in conlleval of CoNLL-2000.

    Raises:
        ValueError: none fits; it says where each does not.
    """
    misfits = {}
    for scheme in SCHEMES:
        misfits[scheme] = _misfit(scheme, sentences)
        if misfits[scheme] is None:
            return scheme
    if all(re.fullmatch("O|[BI](-.+)?", label) for labels in sentences for label in labels):
        return MIXED
    reasons = "; ".join(f"not {scheme}: {misfit}" for scheme, misfit in misfits.items())
    raise ValueError(f"the labels follow no scheme of entities: {reasons}")


def to_bio(sentences: Sequence[Sequence[str]], scheme: str | None = None) -> list[list[str]]:
    """The labels of all sentences in IOB2, converted from `scheme`, by default the one that `scheme_of` finds.

    Raises:
        ValueError: the labels do not follow the scheme, or follow none.
    """
    if scheme is None:
        return to_bio_counted(sentences)[0]
    if scheme not in SCHEMES:
        raise ValueError(f"scheme {scheme!r} is none of {', '.join(SCHEMES)}")
    if misfit := _misfit(scheme, sentences):
        raise ValueError(f"the labels do not follow {scheme}: {misfit}")
    return _converted(sentences, scheme)


def to_bio_counted(sentences: Sequence[Sequence[str]]) -> tuple[list[list[str]], int]:
    """As `to_bio`, and how many I- of the MIXED scheme became B-; 0 if another scheme fits.

    Raises:
        ValueError: the labels follow no scheme.
    """
    scheme = scheme_of(sentences)
    found = _converted(sentences, scheme)
    if scheme != MIXED:
        return found, 0
    pairs = zip(sentences, found, strict=True)
    return found, sum(a != b for before, after in pairs for a, b in zip(before, after, strict=True))


def _converted(sentences: Sequence[Sequence[str]], scheme: str) -> list[list[str]]:
    if scheme == "IOB2":
        return [list(labels) for labels in sentences]
    if scheme == "BIOES":
        prefixes = {"E": "I", "S": "B"}
        return [[prefixes.get(label[0], label[0]) + label[1:] for label in labels] for labels in sentences]
    return [
        [
            "B" + label[1:] if label[0] == "I" and (left == "O" or left[1:] != label[1:]) else label
            for left, label in zip(["O", *labels], labels, strict=False)
        ]
        for labels in sentences
    ]


def _has_tabs(lines: Sequence[str]) -> bool:
    rows = [line for line in lines if line.strip("\t ") and not line.startswith(("#", DOCUMENT_START))]
    return bool(rows) and all("\t" in line for line in rows)


def _check_columns(location: str, num_columns: int, word_column: int, label_column: int | None) -> None:
    columns = [word_column] if label_column is None else [word_column, label_column]
    wanted = f"word_column {word_column}" + ("" if label_column is None else f" and label_column {label_column}")
    if not all(-num_columns <= column < num_columns for column in columns):
        raise ValueError(f"{location}: {num_columns} columns, too few for {wanted}")
    if len({column % num_columns for column in columns}) < len(columns):
        raise ValueError(f"{location}: {num_columns} columns, of which {wanted} are the same")


def _misfit(scheme: str, sentences: Sequence[Sequence[str]]) -> str | None:
    """The first label that breaks `scheme`, in words, or None."""
    prefixes = "BIOES" if scheme == "BIOES" else "BIO"
    last = "O"  # of the sentence before: an entity that IOB1 begins with B- may follow it there
    for number, labels in enumerate(sentences, 1):
        left = last if scheme == "IOB1" else "O"
        for word, label in enumerate([*labels, "O"] if scheme == "BIOES" else labels, 1):
            if not re.fullmatch(rf"O|[{prefixes.replace('O', '')}](-.+)?", label):
                return f"sentence {number}, word {word} has {label!r}"
            if not _may_follow(scheme, left, label):
                end = "ends after" if word > len(labels) else f"word {word} has {label!r} after"
                return f"sentence {number}, {end} {left!r}"
            left = label
        last = labels[-1] if labels else "O"
    return None


def _may_follow(scheme: str, left: str, right: str) -> bool:
    within = left[0] in "BI" and left[1:] == right[1:]  # an entity that can go on, or end with the word before
    if scheme == "IOB2":
        return right[0] != "I" or within
    if scheme == "IOB1":
        return right[0] != "B" or within
    return within if right[0] in "IE" else left[0] not in "BI"
