"""Whatever names a tokenizer (a folder, a file, bare files, a name on the hub) gives the ids of transformers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ingot.data.tokenizers.load import load_tokenizer
from tests.data.conftest import make_text

TEXTS = ["", " a b", "def f(x):\n\treturn 12  # Straße, café", "日本 😀", make_text(3, 9), "The Reader PRINTS"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "reader", "print", "##s", "def", "cafe", *"abcdef():#12"]


@pytest.fixture(scope="module")
def bpe(gpt2_like) -> dict:
    """vocab.json and merges.txt of a byte-level BPE."""
    model = json.loads((gpt2_like / "tokenizer.json").read_text())["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]) + "\n"
    return {"vocab": json.dumps(model["vocab"]), "merges": merges}


def written(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def same(tokenizer, theirs) -> None:
    expected = theirs(TEXTS, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode_batch(TEXTS) == expected
    assert tokenizer.vocab_size == len(theirs)
    assert any(expected)


@pytest.mark.parametrize("names", [("vocab__json", "merges__txt"), ("encoder__json", "vocab__bpe")])
@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_bare_files_of_byte_level_bpe(names, kind, bpe, tmp_path):
    from transformers import GPT2TokenizerFast, RobertaTokenizerFast

    vocabulary = json.loads(bpe["vocab"])
    if kind == "roberta":
        del vocabulary["<|endoftext|>"]
        vocabulary |= {piece: 900 + n for n, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])}
        vocabulary = {piece: n for n, piece in enumerate(vocabulary)}
    folder = written(tmp_path / "bare", **dict(zip(names, (json.dumps(vocabulary), bpe["merges"]), strict=True)))
    files = [str(folder / name.replace("__", ".")) for name in names]
    theirs = (GPT2TokenizerFast if kind == "gpt2" else RobertaTokenizerFast)(vocab=files[0], merges=files[1])
    for source in (folder, str(folder), files[0], Path(files[1])):
        found = load_tokenizer(source)
        same(found, theirs)
        assert (found.bos_id, found.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    found.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").sha256 == found.sha256
    shutil.rmtree(folder)
    same(found, theirs)
    place = found.folder
    del found
    assert not place.exists(), "its temporary folder goes with the tokenizer"


@pytest.mark.parametrize("cased", [False, True])
def test_bare_files_of_word_piece(cased, tmp_path):
    from transformers import BertTokenizerFast

    pieces = [*BERT, "The", "Reader"] if cased else BERT
    folder = written(tmp_path / "bert", vocab__txt="\n".join(pieces) + "\n")
    theirs = BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=not cased)
    for source in (folder, folder / "vocab.txt"):
        found = load_tokenizer(source)
        same(found, theirs)
        assert (found.bos_id, found.eos_id, found.mask_id) == (2, 3, 4)


def test_one_file(gpt2_like, tokenizer, tmp_path):
    from transformers import AutoTokenizer

    alone = written(tmp_path / "alone", tokenizer__json=(gpt2_like / "tokenizer.json").read_text())
    for source in (alone, alone / "tokenizer.json"):
        same(load_tokenizer(source), AutoTokenizer.from_pretrained(alone))
    assert load_tokenizer(gpt2_like / "tokenizer.json").eos_id == 0, "the settings beside it count"
    shutil.copy(tokenizer.folder / "tokenizer.model", tmp_path / "mine.model")
    assert load_tokenizer(str(tmp_path / "mine.model")).encoding_sha256 == tokenizer.encoding_sha256


def test_a_model_of_sentence_piece_with_a_space_before_a_text(texts, tmp_path):
    import sentencepiece
    from transformers import LlamaTokenizer

    source = tmp_path / "texts.txt"
    source.write_text("".join(texts))
    sentencepiece.SentencePieceTrainer.train(
        input=str(source), model_prefix=str(tmp_path / "tokenizer"), vocab_size=330, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    found = load_tokenizer(tmp_path / "tokenizer.model")
    theirs = LlamaTokenizer.from_pretrained(found.folder)
    # transformers adds no space before a text that begins with one; SentencePiece itself, which we use, does.
    plain = [text for text in TEXTS if text.strip() == text != ""]
    assert found.encode_batch(plain) == theirs(plain, add_special_tokens=False)["input_ids"]


def test_a_name_on_the_hub_that_is_in_the_cache(gpt2_like, tmp_path):
    """In a process of its own: the library reads the place of its cache when it is imported."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = tmp_path / "models--someone--tiny"
    shutil.copytree(gpt2_like, model / "snapshots" / commit)
    (model / "snapshots" / commit / "model.safetensors").write_bytes(b"weights")
    (model / "refs").mkdir()
    (model / "refs/main").write_text(commit)
    script = (
        "from ingot.data.tokenizers.load import load_tokenizer\n"
        "print(load_tokenizer('someone/tiny').sha256)\n"
        "try:\n    load_tokenizer('someone/other')\nexcept ValueError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    found, refused = done.stdout.strip().splitlines()
    assert found == load_tokenizer(gpt2_like).sha256
    assert refused.startswith("tokenizer someone/other does not exist: it is no folder or file, and cannot be")


def test_what_does_not_say_its_kind_is_refused_with_what_helps(bpe, tmp_path):
    plain = json.dumps({piece: n for n, piece in enumerate("abc")})
    cases = {
        "half": ({"vocab__json": bpe["vocab"]}, "has vocab.json and lacks merges.txt"),
        "unknown": (
            {"vocab__json": plain, "merges__txt": "a b\n"},
            "its kind is unknown; write a tokenizer_config.json",
        ),
        "clip": ({"vocab__json": '{"a</w>": 0, "<|endoftext|>": 1}', "merges__txt": ""}, "marks the ends of words"),
        "words": ({"vocab__txt": "a\nb\n"}, "lacks .UNK., .CLS. or .SEP."),
        "broken": ({"encoder__json": "[", "vocab__bpe": ""}, "encoder.json is not a vocabulary"),
        "tiktoken": ({"tokenizer__model": "IQ== 0\nIg== 1\n"}, "tiktoken, as of Llama 3"),
        "none": ({"readme__md": "x"}, "has no tokenizer"),
    }
    for name, (files, message) in cases.items():
        with pytest.raises(ValueError, match=message):
            load_tokenizer(written(tmp_path / name, **files))
    with pytest.raises(ValueError, match=r"readme.md is no file that a tokenizer is known by; name its folder"):
        load_tokenizer(tmp_path / "none/readme.md")
    with pytest.raises(ValueError, match=r"nothing/here/there does not exist"):
        load_tokenizer("nothing/here/there")
