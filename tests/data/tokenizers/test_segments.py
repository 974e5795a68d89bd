"""A long text has the same ids in segments as it has as a whole."""

import random

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from ingot.data.tokenizers import segments as dividing
from ingot.data.tokenizers import tokenizer as encoding
from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.segments import can_be_divided, segments

PIECES = [" ", "  ", "\n", "\n\n", "\r\n", "\t", "word", "Word's", "'s", "7", "1234567", ".", "...", "(", "é", "\u4e2d"]
PIECES += ["\u0301", "\U0001f600", "\u00a0", "\n ", " \n", ".\n", "<s>", "A", "z\n", "\nNext"]


def texts_of(seed, size):
    return "".join(random.Random(seed).choices(PIECES, k=size))


def trained(folder, pre_tokenizer, normalizer=None):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        inner.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=["<s>"],
    )
    inner.train_from_iterator([texts_of(seed, 400) for seed in range(60)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>").save_pretrained(folder)
    return load_tokenizer(folder)


def byte_level(folder, rule):
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule is None)
    if rule is None:
        return trained(folder, plain)
    split = pre_tokenizers.Split(Regex(rule), "isolated")
    return trained(folder, pre_tokenizers.Sequence([split, plain]), normalizers.NFC())


def bert(folder):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "word",
        "next",
        "a",
        "z",
        "##z",
        "'",
        "s",
        ".",
        "(",
        "7",
        "##7",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize("rule", ["bert", None, *sorted(dividing._RULES)], ids=["bert", "gpt2", "llama3", "qwen"])
def test_the_ids_are_those_of_the_whole_text(rule, tmp_path, monkeypatch):
    tokenizer = bert(tmp_path) if rule == "bert" else byte_level(tmp_path, rule)
    assert can_be_divided(tokenizer._tokenizer)
    monkeypatch.setattr(dividing, "SEGMENT", 5)
    monkeypatch.setattr(encoding, "ENCODED_AT_ONCE", 100)
    texts = ["", *(texts_of(seed, 1500) for seed in range(100, 130))]
    assert all(len(list(segments(text))) > 20 for text in texts[1:])
    assert all("".join(segments(text)) == text for text in texts)
    found = tokenizer.encode_arrays(texts, np.dtype("<u2"))
    assert [ids.tolist() for ids in found] == tokenizer.encode_batch(texts)


def test_other_rules_are_not_divided(tmp_path):
    prefix = pre_tokenizers.ByteLevel(add_prefix_space=True)
    whole_lines = pre_tokenizers.Split(Regex(r"[^.]+"), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    replaced = normalizers.Replace("\n", "x")
    cases = [(prefix, None), (pre_tokenizers.Sequence([whole_lines, plain]), None), (plain, None)]
    cases += [(pre_tokenizers.ByteLevel(add_prefix_space=False), replaced)]
    for number, (rule, normalizer) in enumerate(cases):
        tokenizer = trained(tmp_path / str(number), rule, normalizer)
        assert not can_be_divided(tokenizer._tokenizer)
        text = texts_of(1, 50)
        assert tokenizer.encode_arrays([text], np.dtype("<u2"))[0].tolist() == tokenizer.encode(text)
