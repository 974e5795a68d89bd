"""Tokenizers as `transformers` opens them: the same ids, the same text back, the same special tokens."""

import json
import re
import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest

from ingot.data.tokenizers.chat import ChatEncoder
from ingot.data.tokenizers.conversion import NORMAL, USER_DEFINED, read_model
from ingot.data.tokenizers.huggingface_export import export_tokenizer
from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.data.tokenizers.training import train_sentencepiece

transformers = pytest.importorskip("transformers")

TEXTS = [
    "",
    " ",
    "  leading, trailing and      runs of spaces   ",
    "def f(a):\n        return a   # eight and three\n\n\n\tif x:\n\t\treturn  y\n",
    "0 1 23 456 7890 3.14159 1,000,000 0x1F 12:34:56",
    "emoji 😀👩‍👩‍👧 🇩🇪, arrows → ⇒, maths ∑∫√",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "Grüße, naïve café, Ελληνικά, кириллица, עברית, العربية",
    "combining e\u0301 and é, ligature ﬁ, full width \uff21, no-break\u00a0space, mark \ufeff in the text",
    "line\r\nends\rof all\x0bkinds\x0c\x85\u2028\u2029",
    "nul \x00 and \x01\x7f control",
    *(sign * number + "x" for sign in " 0=-a" for number in range(2, 40)),
]


@pytest.fixture(scope="module")
def sources() -> list[str]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [file.read_text(errors="ignore") for file in sorted((folder / "json").glob("*.py"))]


@pytest.fixture(scope="module", params=[360, 1500])
def bpe(request, sources, tmp_path_factory) -> Tokenizer:
    return train_sentencepiece(sources, tmp_path_factory.mktemp("bpe"), request.param, fill_in_the_middle=True)


def exported(tokenizer: Tokenizer, folder: Path, causal: bool = True, **options):
    folder.mkdir(exist_ok=True)
    export_tokenizer(tokenizer, folder, causal=causal, **options)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_ids_and_texts_are_the_same(bpe, sources, tmp_path):
    theirs = exported(bpe, tmp_path)
    for text in [*TEXTS, *sources]:
        ids = bpe.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids, text
        assert theirs.decode(ids) == text
    assert len(theirs) == bpe.vocab_size
    assert any(bpe.pieces()[i].startswith("<0x") for i in bpe.encode(TEXTS[6])), "bytes stand in for unknown characters"


def test_a_reader_that_builds_a_llama_tokenizer_itself_puts_no_space_before_a_text(bpe, sources, tmp_path):
    exported(bpe, tmp_path)
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, *sources]:
        ids = bpe.encode(text)
        assert ids_of_llama_cpp(tmp_path, text) == ids, text
        if "\n" not in text and "\t" not in text:  # it does not know that these stand alone
            assert theirs(text, add_special_tokens=False)["input_ids"] == ids, text


def ids_of_llama_cpp(folder: Path, text: str) -> list[int]:
    """What llama.cpp makes of a text with the vocabulary that its converter takes from tokenizer.model.

    The converter adds a space before a text unless tokenizer_config.json says otherwise. Then pieces that a user
    defined are found, and between them the pair whose piece has the highest score is merged, the leftmost of equals.
    """
    proto = read_model(folder / "tokenizer.model")
    piece_ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    score = {p.piece: p.score for p in proto.pieces if p.type == NORMAL}
    defined = [p.piece for p in proto.pieces if p.type == USER_DEFINED]
    prefix = json.loads((folder / "tokenizer_config.json").read_text()).get("add_prefix_space", True)
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, defined))})", (" " if prefix else "") + text):
        if part in defined:
            ids.append(piece_ids[part])
            continue
        symbols = list(part.replace(" ", "▁"))
        while True:
            pairs = [(-score[a + b], n) for n, (a, b) in enumerate(pairwise(symbols)) if a + b in score]
            if not pairs:
                break
            _, n = min(pairs)
            symbols[n : n + 2] = [symbols[n] + symbols[n + 1]]
        for symbol in symbols:
            known = symbol in score
            ids += [piece_ids[symbol]] if known else [piece_ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return ids


def test_special_tokens_keep_their_roles_and_a_class_that_all_readers_know(bpe, tmp_path):
    theirs = exported(bpe, tmp_path)
    ids = (theirs.pad_token_id, theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.mask_token_id)
    assert ids == (0, 1, 2, 3, 4)
    assert theirs.convert_tokens_to_ids("<fim_middle>") == bpe.find("<fim_middle>")
    assert theirs.decode([2, *bpe.encode("a b"), 4, 3], skip_special_tokens=True) == "a b"
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (tmp_path / "tokenizer.model").read_bytes() == (bpe.folder / "tokenizer.model").read_bytes()


def test_a_special_token_that_a_text_spells_is_text_for_us_and_for_transformers_when_asked(bpe, tmp_path):
    theirs = exported(bpe, tmp_path, chats=True)
    asked = transformers.AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    for text in ("</s>", "x <s> y", "<mask>", "a<pad>b</s>\n"):
        ids = bpe.encode(text)
        assert not set(ids) & bpe.special_ids
        assert theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids
        assert asked(text, add_special_tokens=False)["input_ids"] == ids
        assert set(theirs(text, add_special_tokens=False)["input_ids"]) & bpe.special_ids
    chat = [{"role": "user", "content": "x"}]
    ours = next(ChatEncoder(bpe.with_chat_template()).prompts([(chat, "here")])).tolist()
    assert theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] == ours
    # For chats it is not the way: the template's own tokens become text as well.
    assert asked.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] != ours


def test_texts_stand_between_the_tokens_of_training(bpe, tmp_path):
    ids = bpe.encode("a b")
    assert exported(bpe, tmp_path / "gpt")("a b")["input_ids"] == [2, *ids]
    bert = exported(bpe, tmp_path / "bert", causal=False, token_types=True)
    assert bert("a b")["input_ids"] == [2, *ids, 3]
    assert bert("x <mask>")["input_ids"][-2] == bert.mask_token_id == 4
    pair = bert("a b", "c")
    assert pair["input_ids"] == [2, *ids, 3, *bpe.encode("c"), 3]
    assert pair["token_type_ids"] == [0] * (len(ids) + 2) + [1] * (len(bpe.encode("c")) + 1)
    assert "token_type_ids" not in exported(bpe, tmp_path / "roberta", causal=False)("a b", "c")


def test_we_open_what_was_exported(bpe, sources, tmp_path):
    exported(bpe, tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.vocab_size, again.bos_id, again.eos_id) == (bpe.vocab_size, 2, 3)
    assert (again.pad_id, again.mask_id) == (0, 4)
    assert [again.encode(text) for text in sources] == [bpe.encode(text) for text in sources]


def test_other_ids_are_refused(bpe, tmp_path, monkeypatch):
    """A normalize_text text is another one."""
    monkeypatch.setattr(SentencePieceTokenizer, "encode_batch", lambda _self, texts, threads=1: [[5] for _ in texts])
    with pytest.raises(ValueError, match="with the same ids"):
        export_tokenizer(bpe, tmp_path, causal=True)
    assert not (tmp_path / "tokenizer.json").exists()


def test_unigram_is_the_same_or_refused(sources, tmp_path):
    unigram = train_sentencepiece(sources, tmp_path / "unigram", 500, "unigram")
    with pytest.raises(ValueError, match=r"with the same ids: '  +x' gives .* set exact_tokenizer to false"):
        exported(unigram, tmp_path / "out")
    with pytest.warns(UserWarning, match="with the same ids"):
        theirs = exported(unigram, tmp_path / "out", exact=False)
    lines = [line for source in sources for line in source.splitlines(keepends=True)]
    others = sum(theirs(line, add_special_tokens=False)["input_ids"] != unigram.encode(line) for line in lines)
    assert others <= len(lines) / 50


def test_a_folder_of_transformers_is_copied(bpe, tmp_path):
    exported(bpe, tmp_path / "first")
    exported(load_tokenizer(tmp_path / "first"), tmp_path / "second")
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
