import json

import numpy as np
import pytest

from ingot.data.sources.ingest import scan
from ingot.data.writing.deduplication import (
    NUM_PERMUTATIONS,
    compute_signatures,
    count_dropped,
    dropped_documents,
    mark_duplicates,
    normalize_text,
    shingles,
)
from ingot.data.writing.pieces import PreparationPlan, group_into_pieces
from tests.data.conftest import make_text


def plan_of(folder, texts, deduplicate, piece_bytes, threshold=0.8, fraction=0.3):
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources, _ = scan([path], ["*"], validation_fraction=fraction, part_bytes=piece_bytes)
    pieces = group_into_pieces(sources, piece_bytes)
    return PreparationPlan("", "f", "", 1, fraction, 1000, False, deduplicate, threshold, pieces=pieces)


def kept(folder, plan):
    """Texts that stay, by split, in the order of the corpus."""
    folder.mkdir(exist_ok=True)
    for number in reversed(range(len(plan.pieces))):  # in whatever order the workers come
        compute_signatures(plan, number, folder)
    mark_duplicates(plan, folder)
    result = []
    for number in range(len(plan.pieces)):
        from ingot.data.sources.documents import Skipped

        documents = plan.documents(number, Skipped())
        drops = dropped_documents(plan, number, folder)
        result += [(split, d.text) for (split, d), drop in zip(documents, drops, strict=True) if not drop]
    return result


def test_what_counts_as_the_same():
    assert normalize_text(" \uff33ame\n\ttext ") == normalize_text("same TEXT")
    assert normalize_text("same text.") != normalize_text("same text")
    assert shingles("one two three") == {b"one two three"}
    assert len(shingles("a b c d e f")) == 2
    assert len(shingles("秦川雄帝宅函谷")) == 3  # characters where there are no spaces


@pytest.mark.parametrize("piece_bytes", [500, 100_000])
def test_one_of_each_text_stays_the_held_out_one_first(tmp_path, piece_bytes):
    unique = [make_text(seed, 6) for seed in range(20)]
    texts = unique + [text.upper() for text in unique] + unique
    plan = plan_of(tmp_path, texts, "exact", piece_bytes)
    assert (len(plan.pieces) > 5) == (piece_bytes == 500)
    stay = kept(tmp_path / "pieces", plan)
    assert sorted(normalize_text(text) for _, text in stay) == sorted(map(normalize_text, unique))
    assert count_dropped(plan, tmp_path / "pieces").counts == {"exact duplicates": 40}
    held_out = {
        normalize_text(d.text)
        for number in range(len(plan.pieces))
        for split, d in plan.documents(number, count_dropped(plan, tmp_path / "pieces"))
        if split == "validation"
    }
    assert {normalize_text(text) for split, text in stay if split == "validation"} == held_out


def test_near_duplicates_go_and_others_stay(tmp_path):
    words = [f"word{i}" for i in range(5000)]
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(words, 200)) for _ in range(30)]
    near = [text.replace(" ", "  ", 3) + " and one more" for text in texts[:10]]
    far = [" ".join([*text.split()[:100], *draw.choice(words, 100)]) for text in texts[10:20]]  # a third in common
    plan = plan_of(tmp_path, texts + near + far, "near", 5000, fraction=0)
    stay = [text for _, text in kept(tmp_path / "pieces", plan)]
    assert len(stay) == 40
    assert set(far) <= set(stay)
    assert count_dropped(plan, tmp_path / "pieces").counts == {"near duplicates": 10}
    assert NUM_PERMUTATIONS == 128
