"""Removal of duplicate documents: exact ones by a hash of their normalize_text text, near ones by MinHash (Broder 1997)
with locality-sensitive hashing, through the library `datasketch`.

Signatures are made piece by piece; which documents stay is then decided once, in the order of the corpus, so it does
not depend on who made the signatures. Documents of the held-out splits come first: of two that are alike, the one in
training goes.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ingot.data.sources.documents import TRAIN, Skipped
from ingot.data.writing.pieces import PreparationPlan, finished_piece, new_piece, piece_paths

KINDS = ("none", "exact", "near")
NUM_PERMUTATIONS = 128
SHINGLE = 5  # words, or characters of scripts without spaces
_SEED = 1
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_CJK}]|[^\\W{_CJK}]+")


def normalize_text(text: str) -> str:
    """What counts as the same text: NFKC, lower case, runs of whitespace as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(text: str) -> set[bytes]:
    """All runs of SHINGLE consecutive words of a normalize_text text; the whole of a shorter one."""
    words = _WORD.findall(text)
    runs = range(max(1, len(words) - SHINGLE + 1))
    return {" ".join(words[i : i + SHINGLE]).encode() for i in runs}


def _hash32(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "little")


def check_library() -> None:
    """Raises ValueError where `datasketch` is not installed."""
    try:
        import datasketch  # noqa: F401
    except ImportError:
        raise ValueError("near-duplicate removal needs the package datasketch: pip install datasketch") from None


def compute_signatures(
    plan: PreparationPlan, number: int, folder: Path, report: Callable[[int, int], None] = lambda b, t: None
) -> None:
    """Write the signatures of a piece's documents: 16 bytes each of the exact hash, whether they are held out, and
    (near) NUM_PERMUTATIONS uint32. `report` gets bytes of text and 0."""
    near = plan.deduplicate == "near"
    if near:
        from datasketch import MinHash

        empty = MinHash(NUM_PERMUTATIONS, seed=_SEED, hashfunc=_hash32)
    exact, held_out, minhashes = bytearray(), bytearray(), []
    with new_piece(folder, "signatures", number) as writer:
        for split, document in plan.documents(number, Skipped()):
            text = normalize_text(document.text)
            exact += hashlib.blake2b(text.encode(), digest_size=16).digest()
            held_out.append(split != TRAIN)
            if near:
                minhash = empty.copy()
                minhash.update_batch(sorted(shingles(text)))
                minhashes.append(minhash.hashvalues.astype("<u4"))
            report(len(document.text.encode()), 0)
        writer.write(exact)
        writer.write(held_out)
        if near:
            writer.write(np.array(minhashes, dtype="<u4").tobytes())
        writer.finish(plan.fingerprint, num_documents=len(held_out))


def decide(plan: PreparationPlan, folder: Path, progress: Callable[[int], None] = lambda n: None) -> None:
    """From the signatures of all pieces, write for each piece which documents are dropped, with counts."""
    exact, held_out, minhashes, ends = _load(plan, folder)
    priority = np.argsort(held_out == 0, kind="stable")  # held out first, in order of the corpus otherwise
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
            about = {"exact": int(drop[begin:end].sum()), "near": int(near[begin:end].sum())}
            writer.finish(plan.fingerprint, **about)
        begin = end
    assert num_exact + near.sum() == (drop | near).sum()


def _load(plan: PreparationPlan, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, list[int]]:
    exact, held_out, minhashes, ends = [], [], [], []
    for number in range(len(plan.pieces)):
        mark = finished_piece(folder, "signatures", number, plan.fingerprint)
        assert mark is not None, "signatures come first"
        count = mark["num_documents"]
        content = piece_paths(folder, "signatures", number)[0].read_bytes()
        exact.append(np.frombuffer(content, dtype="V16", count=count))
        held_out.append(np.frombuffer(content, dtype=np.uint8, count=count, offset=16 * count))
        if plan.deduplicate == "near":
            part = np.frombuffer(content, dtype="<u4", offset=17 * count)
            minhashes.append(part.reshape(count, NUM_PERMUTATIONS))
        ends.append(count + (ends[-1] if ends else 0))
    # numpy sorts no void type: two integers in one complex-like record do
    pairs = np.concatenate(exact).view([("a", "<u8"), ("b", "<u8")])
    return pairs, np.concatenate(held_out), np.concatenate(minhashes) if minhashes else None, ends


def _near_duplicates(
    candidates: list[int], minhashes: np.ndarray, threshold: float, progress: Callable[[int], None]
) -> np.ndarray:
    """Greedy: a document goes when its estimated Jaccard similarity to one that stays reaches `threshold`."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS)
    empty = MinHash(NUM_PERMUTATIONS, seed=_SEED, hashfunc=_hash32)
    dropped = np.zeros(len(minhashes), dtype=bool)
    for number in candidates:
        minhash = empty.copy()
        minhash.hashvalues = minhashes[number].astype(np.uint64)
        alike = index.query(minhash)
        if alike and (minhashes[alike] == minhashes[number]).mean(axis=1).max() >= threshold:
            dropped[number] = True
        else:
            index.insert(number, minhash, check_duplication=False)
        progress(1)
    return dropped


def dropped_documents(plan: PreparationPlan, number: int, folder: Path) -> np.ndarray | None:
    """Which documents of a piece are dropped, as bool; None where nothing is removed."""
    if plan.deduplicate == "none":
        return None
    return np.frombuffer(piece_paths(folder, "dropped", number)[0].read_bytes(), dtype=bool)


def count_dropped(plan: PreparationPlan, folder: Path) -> Skipped:
    """How many duplicates were removed; each kind is named at the first piece that has one."""
    skipped = Skipped()
    if plan.deduplicate != "none":
        for number in range(len(plan.pieces)):
            mark = finished_piece(folder, "dropped", number, plan.fingerprint) or {}
            for kind, reason in (("exact", "exact duplicates"), ("near", "near duplicates")):
                skipped.add(reason, f"piece {number}", mark.get(kind, 0))
    return skipped
