"""Sentences of columns come with their places and documents; every scheme of labels becomes IOB2, or is refused."""

import random

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from ingot.data.tasks.conll import MIXED, SCHEMES, TaggedSentence, read_conll, scheme_of, to_bio, to_bio_counted

COLUMNS = """\
-DOCSTART- -X- -X- O

Mira NNP I-NP I-PER
visits VBZ I-VP O
Lake NNP I-NP I-LOC
Orla NNP I-NP I-LOC

# NN I-NP O
5 CD I-NP O

-DOCSTART- -X- O O

-DOCSTART-

Rain NN I-NP O
"""


def read(tmp_path, content, **columns):
    (tmp_path / "a.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_conll(tmp_path / "a.txt", **columns)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_sentences_with_their_places_and_documents(tmp_path, ends):
    content = COLUMNS.replace("\n", ends).removesuffix(ends)
    expected = [
        TaggedSentence(["Mira", "visits", "Lake", "Orla"], ["I-PER", "O", "I-LOC", "I-LOC"], "a.txt, line 3", 0),
        TaggedSentence(["#", "5"], ["O", "O"], "a.txt, line 8", 0),
        TaggedSentence(["Rain"], ["O"], "a.txt, line 15", 1),
    ]
    assert read(tmp_path, content) == expected
    assert read(tmp_path, b"\xef\xbb\xbf" + content.encode()) == expected
    tags = read(tmp_path, content, word_column=-4, label_column=1)
    assert [sentence.labels for sentence in tags] == [["NNP", "VBZ", "NNP", "NNP"], ["NN", "CD"], ["NN"]]


def test_documents_without_a_first_mark(tmp_path):
    found = read(tmp_path, "a O\n-DOCSTART- O\nb O\n \t \nc O\n-DOCSTART- O\n")
    assert [(s.words, s.document) for s in found] == [(["a"], 0), (["b"], 1), (["c"], 1)]
    assert [s.document for s in read(tmp_path, "a O\n\nb O\n")] == [0, 0]


def test_spaces_are_runs_and_other_spaces_belong_to_a_word(tmp_path):
    found = read(tmp_path, " 10\u00a0000 \t NUM  O \nx\u2028y CD O\n")
    assert found[0].words == ["10\u00a0000", "x\u2028y"]
    assert found[0].labels == ["O", "O"]


def test_tabs_alone_separate_where_each_line_has_one(tmp_path):
    content = "# newdoc\n# text = New York\tis\nNew York\tB-LOC\n#\tO\n#5\tO\n#comment\n\n# only a comment\n\nis\tO\n"
    found = read(tmp_path, content)
    assert [(s.words, s.where) for s in found] == [
        (["New York", "#", "#5"], "a.txt, line 3"),
        (["is"], "a.txt, line 10"),
    ]
    with pytest.raises(ValueError, match=r"a\.txt, line 2: 6 columns, and line 1 has 2"):
        read(tmp_path, content.replace("is\tO", "is O"))  # not all lines have a tab: no comments either


def test_words_of_conll_u(tmp_path):
    rows = ["1-2\tzum\t_", "1\tzu\tADP", "2\tdem\tDET", "2.1\tgar\t_", "3\tSee\tNOUN"]
    content = "# text = zum See\n" + "".join(row.replace("\t", "\t", 1) + "\t_" * 7 + "\n" for row in rows)
    found = read(tmp_path, content, word_column=1, label_column=2)
    assert (found[0].words, found[0].labels) == (["zu", "dem", "See"], ["ADP", "DET", "NOUN"])


@pytest.mark.parametrize(
    ("content", "columns", "reason"),
    [
        ("a NN O\n\nb O\n", {}, r"a\.txt, line 3: 2 columns, and line 1 has 3"),
        ("a NN O\nb NN B O\n", {}, r"a\.txt, line 2: 4 columns, and line 1 has 3"),
        ("a NN O\n", {"label_column": 3}, r"line 1: 3 columns, too few for word_column 0 and label_column 3"),
        ("a NN O\n", {"word_column": -4}, r"line 1: 3 columns, too few for word_column -4"),
        ("\na\nb\n", {}, r"line 2: 1 columns, of which word_column 0 and label_column -1 are the same"),
        ("a\tO\nb\t\n", {}, r"line 2: no label in its column"),
        ("a\tO\n\tO\n", {}, r"line 2: no word in its column"),
        ("-DOCSTART- O\n\n", {}, r"a\.txt holds no sentence"),
        (" \n", {}, r"a\.txt is empty"),
        ("Zürich O\n".encode("latin-1"), {}, r"a\.txt is not UTF-8"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line(tmp_path, content, columns, reason):
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, content, **columns)


SAME = {  # one place after another, "Mira and Lake Orla, Ost" with two places side by side
    "IOB2": [["B-PER", "O", "B-LOC", "I-LOC", "B-LOC", "B-PER"], ["O"], ["B-PER"]],
    "IOB1": [["I-PER", "O", "I-LOC", "I-LOC", "B-LOC", "I-PER"], ["O"], ["I-PER"]],
    "BIOES": [["S-PER", "O", "B-LOC", "E-LOC", "S-LOC", "S-PER"], ["O"], ["S-PER"]],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_scheme_is_recognised_and_becomes_iob2(scheme):
    assert scheme_of(SAME[scheme]) == scheme
    assert to_bio(SAME[scheme]) == to_bio(SAME[scheme], scheme) == SAME["IOB2"]
    untyped = [[label[0] for label in labels] for labels in SAME[scheme]]
    untyped = [[*labels[:-1], "O"] for labels in untyped]  # the last touches the one before
    assert scheme_of(untyped) == scheme
    assert to_bio(untyped)[0] == ["B", "O", "B", "I", "B", "O"]
    for other in set(SCHEMES) - {scheme}:
        with pytest.raises(ValueError, match=f"do not follow {other}: sentence 1, "):
            to_bio(SAME[scheme], other)


def spelled(entities, length, scheme):
    """The labels of a sentence with `entities` (type, first, last)."""
    labels, ends = ["O"] * length, {}
    for kind, first, last in entities:
        for place in range(first, last + 1):
            labels[place] = f"I-{kind}"
        if scheme == "IOB2" or (scheme == "IOB1" and ends.get(first - 1) == kind):
            labels[first] = f"B-{kind}"
        elif scheme == "BIOES":
            labels[first], labels[last] = f"B-{kind}", f"E-{kind}"
            if first == last:
                labels[first] = f"S-{kind}"
        ends[last] = kind
    return labels


def test_entities_stay_the_same_under_every_scheme():
    draw = random.Random(0)
    for _ in range(300):
        sentences = []
        for _ in range(draw.randrange(1, 5)):
            entities, place, length = [], 0, draw.randrange(1, 12)
            while place < length:
                last = min(length - 1, place + draw.randrange(3))
                if draw.random() < 0.7:
                    entities.append((draw.choice(["A", "B-2"]), place, last))
                place = last + 1
            sentences.append((entities, length))
        expected = [spelled(*sentence, "IOB2") for sentence in sentences]
        for scheme in SCHEMES:
            labels = [spelled(*sentence, scheme) for sentence in sentences]
            assert to_bio(labels) == to_bio(labels, scheme) == expected
            assert scheme_of(labels) == (scheme if any(entities for entities, _ in sentences) else "IOB2")
        assert [get_entities(labels) for labels in expected] == [entities for entities, _ in sentences]


def test_an_entity_may_follow_one_of_the_sentence_before_in_iob1():
    assert to_bio([["O", "I-LOC"], ["B-LOC", "I-LOC"]]) == [["O", "B-LOC"], ["B-LOC", "I-LOC"]]


def test_mixed_schemes_are_read_as_conlleval_reads_them():
    mixed = [["B-PER", "O", "I-LOC", "I-LOC"], ["I-PER", "B-LOC", "I-PER"], ["B-PER", "I-PER"]]
    assert scheme_of(mixed) == MIXED
    found, count = to_bio_counted(mixed)
    assert count == 3
    assert found == to_bio(mixed)
    assert found == [["B-PER", "O", "B-LOC", "I-LOC"], ["B-PER", "B-LOC", "B-PER"], ["B-PER", "I-PER"]]
    assert [get_entities(labels) for labels in found] == [get_entities(labels) for labels in mixed]
    assert [to_bio_counted(SAME[scheme]) for scheme in SCHEMES] == [(SAME["IOB2"], 0)] * 3


def test_nothing_but_other_words():
    assert scheme_of([["O", "O"], []]) == "IOB2"
    assert to_bio([["O", "O"], []]) == [["O", "O"], []]


@pytest.mark.parametrize(
    "labels",
    [
        ["B-PER", "I-PER", "E-LOC"],
        ["B-PER", "I-PER", "E-PER", "I-PER"],
        ["S-PER", "B-LOC"],  # never ends
        ["S-PER", "E-PER"],
        ["NN", "VBZ"],
        ["O", "B-"],
        ["o"],
        ["O-PER"],
        ["B-PER", "L-PER"],
        [""],
    ],
)
def test_labels_of_no_scheme_are_refused(labels):
    with pytest.raises(ValueError, match=r"no scheme of entities: not IOB2: sentence 2.*not IOB1: .*not BIOES: "):
        to_bio([["O"], labels])


def test_refusals_name_the_place():
    with pytest.raises(
        ValueError, match=r"IOB2: sentence 1, word 3 has 'I-LOC' after 'O'.*word 1 has 'B-PER' after 'O'"
    ):
        scheme_of([["B-PER", "O", "I-LOC", "E-LOC"]])
    with pytest.raises(ValueError, match="BIOES: sentence 1, ends after 'B-LOC'"):
        to_bio([["S-PER", "B-LOC"]], "BIOES")
    with pytest.raises(ValueError, match="scheme 'BMES' is none of IOB2, IOB1, BIOES"):
        to_bio([["O"]], "BMES")
