import numpy as np
import pytest

from ingot.data.sequences.sentences import sentence_marks
from ingot.data.tokenizers.training import train_sentencepiece


def beginnings(pieces, text):
    """The pieces at which sentences begin."""
    vocabulary = sorted(set(pieces) | set(text))
    tokens = np.array([vocabulary.index(piece) for piece in text])
    return np.flatnonzero(sentence_marks(vocabulary).starts(tokens)).tolist()


def test_sentencepiece():
    text = ["▁He", "▁said", ".", "▁It", "▁is", "▁3", ".", "14", "▁or", "▁so", "!", "▁Yes", "?!", "▁No"]
    assert beginnings([], text) == [3, 11, 13]


def test_quotes_brackets_and_line_ends_belong_to_the_sentence_before():
    text = ["▁He", ".", '"', ")", "\n", "▁It", '."', "▁Oh", ".\n", "▁A", "▁(", "b", ")", "▁c"]
    assert beginnings([], text) == [5, 7, 9]


def test_an_opening_quote_begins_a_sentence():
    assert beginnings([], ["▁He", ".", '▁"', "It", "▁is", '."']) == [2]


def test_chinese_needs_no_spaces():
    text = [
        "▁秦川",
        "雄",
        "帝宅",
        ",",
        "函谷",
        "壯",
        "皇居",
        "。",
        "綺殿",
        "千尋",
        "起",
        "!」",
        "離宮",
        "。",
        "\n",
        "連甍",
    ]
    assert beginnings([], [piece.replace("!", "\uff01").replace(",", "\uff0c") for piece in text]) == [8, 12, 15]


def test_wordpiece():
    text = ["he", "said", "##so", ".", "it", "##s", "?", "##x", "end"]
    assert beginnings(["##a", "##b"], text) == [4]


def test_bytelevel():
    text = ["He", ".", "ĠIt", "Ġis", ".", "x", "Ġy", "ãĢĤ", "Ġz", "!", "Ċ", "Ġw"]
    assert beginnings(["Ġa", "Ġb"], text) == [2, 8, 11]


def test_nothing_begins_in_nothing():
    marks = sentence_marks(["▁a", "."])
    assert marks.starts(np.empty(0, dtype=np.int64)).tolist() == []
    assert marks.starts(np.array([0])).tolist() == [False]
    assert marks.starts(np.array([1, 0])).tolist() == [False, True]
    with pytest.raises(ValueError, match="marks where words begin"):
        sentence_marks(["a", "."])


def test_with_a_trained_tokenizer(tmp_path):
    sentences = ["The shard is read.", "Is it whole?", 'He said: "No."', "Version 1.5 of it is here!"] * 50
    tokenizer = train_sentencepiece([" ".join(sentences)], tmp_path, 300)
    ids = np.array(tokenizer.encode(" ".join(sentences[:4])))
    begins = np.flatnonzero(sentence_marks(tokenizer.pieces()).starts(ids))
    assert [tokenizer.decode(part.tolist()).strip() for part in np.split(ids, begins)] == sentences[:4]
