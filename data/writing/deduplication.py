"""Removal of duplicate documents: exact ones by a hash of their normalized text, near ones by MinHash (Broder 1997)
with locality-sensitive hashing, from the library `datasketch`.

Signatures are computed for each piece. Then one process marks the duplicates, in the order of the corpus: the result
does not depend on who computed the signatures. Documents of the held-out splits come first, so of a held-out document
and a similar training document the training document is removed.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ingot.data.sources.documents import TRAIN, Skipped
from ingot.data.writing.pieces import PreparationPlan, finished_piece, new_piece, piece_paths
from ingot.packages import how_to_install

if TYPE_CHECKING:
    from datasketch import MinHash

KINDS = ("none", "exact", "near")
NUM_PERMUTATIONS = 128
SHINGLE = 5  # words, or characters of scripts without spaces
_SEED = 1
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_CJK}]|[^\\W{_CJK}]+")


def normalize_text(text: str) -> str:
    """The text in NFKC and lower case, with runs of whitespace as one space. Equal results are exact duplicates."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(text: str) -> set[bytes]:
    """All runs of SHINGLE consecutive words of a normalized text. A shorter text is one run."""
    words = _WORD.findall(text)
    runs = range(max(1, len(words) - SHINGLE + 1))
    return {" ".join(words[i : i + SHINGLE]).encode() for i in runs}


def _hash32(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "little")


def check_library() -> None:
    """Raises ValueError if `datasketch` is not installed."""
    try:
        import datasketch  # noqa: F401
    except ImportError:
        command = how_to_install("datasketch")
        raise ValueError(f"near-duplicate removal needs the package datasketch: run {command}") from None


def compute_signatures(
    plan: PreparationPlan, number: int, folder: Path, report: Callable[[int, int], None] = lambda b, t: None
) -> None:
    """Write the signatures of the documents of piece `number`.

    For each document: 16 bytes of the exact hash, 1 byte whether it is held out, and (for near duplicates)
    NUM_PERMUTATIONS uint32 of its MinHash. `report` gets bytes of text and 0.
    """
    near = plan.deduplicate == "near"
    exact, held_out, minhashes = bytearray(), bytearray(), []
    with new_piece(folder, "signatures", number) as writer:
        for split, document in plan.documents(number, Skipped()):
            text = normalize_text(document.text)
            exact += hashlib.blake2b(text.encode(), digest_size=16).digest()
            held_out.append(split != TRAIN)
            if near:
                minhash = _new_minhash()
                minhash.update_batch(sorted(shingles(text)))
                minhashes.append(minhash.hashvalues.astype("<u4"))
            report(len(document.text.encode()), 0)
        writer.write(exact)
        writer.write(held_out)
        if near:
            writer.write(np.array(minhashes, dtype="<u4").tobytes())
        writer.finish(plan.fingerprint, num_documents=len(held_out))


@cache
def _empty_minhash() -> MinHash:
    from datasketch import MinHash

    return MinHash(NUM_PERMUTATIONS, seed=_SEED, hashfunc=_hash32)


def _new_minhash() -> MinHash:
    return _empty_minhash().copy()  # faster than a new one, which draws the permutations


def mark_duplicates(plan: PreparationPlan, folder: Path, progress: Callable[[int], None] = lambda n: None) -> None:
    """From the signatures of all pieces, write for each piece which documents are removed, with their numbers."""
    exact, held_out, minhashes, ends = _load(plan, folder)
    priority = np.argsort(held_out == 0, kind="stable")  # held-out documents first, else the order of the corpus
    drop = np.ones(len(exact), dtype=bool)
    _, first = np.unique(exact[priority], return_index=True)
    drop[priority[first]] = False
    num_exact = int(drop.sum())
    near = np.zeros(len(exact), dtype=bool)
    if minhashes is not None:
        near = _near_duplicates([i for i in priority.tolist() if not drop[i]], minhashes, plan.near_threshold, progress)
    begin = 0
    for number, end in enumerate(ends):
        with new_piece(folder, "dropped", number) as writer:
            writer.write((drop | near)[begin:end].tobytes())
            counts = {"exact": int(drop[begin:end].sum()), "near": int(near[begin:end].sum())}
            writer.finish(plan.fingerprint, **counts)
        begin = end
    assert num_exact + near.sum() == (drop | near).sum()


def _load(plan: PreparationPlan, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, list[int]]:
    exact, held_out, minhashes = [], [], []
    ends: list[int] = []
    for number in range(len(plan.pieces)):
        marker = finished_piece(folder, "signatures", number, plan.fingerprint)
        assert marker is not None, "signatures come first"
        count = marker["num_documents"]
        content = piece_paths(folder, "signatures", number)[0].read_bytes()
        exact.append(np.frombuffer(content, dtype="V16", count=count))
        held_out.append(np.frombuffer(content, dtype=np.uint8, count=count, offset=16 * count))
        if plan.deduplicate == "near":
            part = np.frombuffer(content, dtype="<u4", offset=17 * count)
            minhashes.append(part.reshape(count, NUM_PERMUTATIONS))
        ends.append(count + (ends[-1] if ends else 0))
    # numpy cannot sort a void type, but it can sort records of two integers
    pairs = np.concatenate(exact).view([("a", "<u8"), ("b", "<u8")])
    return pairs, np.concatenate(held_out), np.concatenate(minhashes) if minhashes else None, ends


def _near_duplicates(
    candidates: list[int], minhashes: np.ndarray, threshold: float, progress: Callable[[int], None]
) -> np.ndarray:
    """Greedy: a document is removed if its estimated Jaccard similarity to one that stays reaches `threshold`."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS)
    dropped = np.zeros(len(minhashes), dtype=bool)
    for number in candidates:
        minhash = _new_minhash()
        minhash.hashvalues = minhashes[number].astype(np.uint64)
        similar = index.query(minhash)
        if similar and (minhashes[similar] == minhashes[number]).mean(axis=1).max() >= threshold:
            dropped[number] = True
        else:
            index.insert(number, minhash, check_duplication=False)
        progress(1)
    return dropped


def dropped_documents(plan: PreparationPlan, number: int, folder: Path) -> np.ndarray | None:
    """Which documents of a piece are removed, as bool; None if duplicates are kept."""
    if plan.deduplicate == "none":
        return None
    return np.frombuffer(piece_paths(folder, "dropped", number)[0].read_bytes(), dtype=bool)


def count_dropped(plan: PreparationPlan, folder: Path) -> Skipped:
    """How many duplicates were removed. The first one of each kind is named by its piece."""
    skipped = Skipped()
    if plan.deduplicate != "none":
        for number in range(len(plan.pieces)):
            marker = finished_piece(folder, "dropped", number, plan.fingerprint) or {}
            for kind, reason in (("exact", "exact duplicates"), ("near", "near duplicates")):
                skipped.add(reason, f"piece {number}", marker.get(kind, 0))
    return skipped
