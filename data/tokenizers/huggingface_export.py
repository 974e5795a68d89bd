"""Writes a tokenizer as files that `transformers` opens and that give the same ids."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from ingot.data.tokenizers.checked_files import MAX_FILE_BYTES
from ingot.data.tokenizers.conversion import NORMAL, USER_DEFINED, convert, obstacles, read_model
from ingot.data.tokenizers.pretrained_tokenizer import PretrainedTokenizer
from ingot.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.safe_files import read_json

PROBES = (
    "The quick brown fox jumps over the lazy dog. 0123456789 3.14159 1,000,000",
    "  two spaces before,   three between, and some behind   ",
    "def f(x):\n\treturn x  # a tab\n\n\n    four spaces\r\n",
    "naïve café, Ångström, Straße, ﬁ ligature, e\u0301 decomposed, non\u00a0breaking\u3000wide",
    "春眠不覺曉,處處聞啼鳥。 한국어 텍스트, 日本語のかな, Русский текст, עברית, العربية",
    "emoji 😀👩‍👩‍👧‍👦🇩🇪 and ∑∫√, arrows →⇒, \u0001 control, \ufffd, \U0001d518\U0001d52b",
    "aaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbbbbbbb \n\n\n\n\t\t\t \n x",
    "",
    *(sign * number + "x" for sign in " 0=-a" for number in range(2, 50)),
)
"""Texts on which the ids must agree: spaces, digits, accents, scripts, emoji, lines, bytes, and repeated characters."""


def export_tokenizer(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    causal: bool,
    token_types: bool = False,
    exact: bool = True,
    chats: bool = False,
) -> None:
    """Writes the tokenizer's files into an existing folder.

    A `transformers` tokenizer is copied; its class gets a name that older versions know too. A SentencePiece model is
    copied and converted to a tokenizer.json, and a check compares the ids of both. Unigram models can differ in two
    cases. A text that spells a byte piece, such as <0x41>, becomes that piece in tokenizer.json. If two ways to split a
    repeated character are equally likely, rounding decides, and the two libraries round differently.

    Args:
        causal: a text has only the begin token (language models of a GPT). If False it also has the end token (BERT,
            and each model with the head of a task).
        chats: a SentencePiece tokenizer without a chat template gets the default one.
        token_types: the model uses token types for the two texts of a pair.
        exact: different ids for a text are an error; if False they are a warning.

    Raises:
        ValueError: a SentencePiece model that cannot be converted.
    """
    if chats and isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.eos_id is not None:
        tokenizer = tokenizer.with_chat_template()
    tokenizer.save(folder)
    if isinstance(tokenizer, SentencePieceTokenizer):
        _convert(tokenizer, folder, causal, token_types, exact)
    else:
        assert isinstance(tokenizer, PretrainedTokenizer)
        _name_class(tokenizer.class_name, folder / "tokenizer_config.json")


def _name_class(name: str, path: Path) -> None:
    """Name the tokenizer's class, because some folders name it only in config.json, which the model's replaces."""
    settings = read_json(path, max_bytes=MAX_FILE_BYTES) if path.is_file() else {}
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is not a JSON object")
    if settings.get("tokenizer_class") in (None, "TokenizersBackend"):
        settings["tokenizer_class"] = "PreTrainedTokenizerFast" if name == "TokenizersBackend" else name
        _write(path, settings)


def _convert(tokenizer: SentencePieceTokenizer, folder: Path, causal: bool, token_types: bool, exact: bool) -> None:
    from tokenizers import processors

    proto = read_model(tokenizer.folder / "tokenizer.model")
    if found := obstacles(proto):
        raise ValueError(
            f"{tokenizer.folder / 'tokenizer.model'} has {', '.join(found)}, which the conversion does not support; "
            "prepare the corpus with the transformers version of this tokenizer instead"
        )
    pieces = tokenizer.pieces()
    converted = convert(proto, pieces, sorted(tokenizer.special_ids))
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id, "mask": tokenizer.mask_id}
    named = {name: pieces[i] for name, i in ids.items() if i is not None}
    begin = [named["bos"]] if "bos" in named else []
    end = [named["eos"]] if "eos" in named and not causal else []
    if begin or end:
        converted.post_processor = processors.TemplateProcessing(
            single=[*begin, "$A", *end],
            pair=[*begin, "$A", *end, *(begin if causal else []), "$B:1", *(f"{token}:1" for token in end)],
            special_tokens=[(token, pieces.index(token)) for token in sorted({*begin, *end})],
        )
    _check_same_ids(tokenizer, converted, proto, exact)
    converted.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {f"{name}_token": piece for name, piece in named.items()}
    unknown = tokenizer.unk_id
    settings |= {"unk_token": pieces[unknown]} if unknown is not None else {}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    # No space goes before a text. Readers that build a Llama tokenizer themselves assume one unless both are false.
    settings |= {"add_prefix_space": False, "legacy": False}
    settings |= {"model_input_names": ["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"]}
    _write(folder / "tokenizer_config.json", settings)


def _check_same_ids(tokenizer: SentencePieceTokenizer, converted: Any, proto: Any, exact: bool) -> None:
    ordinary = [piece.piece.replace("▁", " ") for piece in proto.pieces if piece.type in (NORMAL, USER_DEFINED)]
    texts = [*PROBES, *("".join(ordinary[i : i + 50]) for i in range(0, len(ordinary), 50))]
    for text in texts:
        wanted = tokenizer.encode(text)
        got = converted.encode(text, add_special_tokens=False).ids
        if got != wanted:
            message = (
                f"{tokenizer.folder / 'tokenizer.model'} cannot be converted to a tokenizer.json with the same ids: "
                f"{text[:60]!r} gives {wanted[:20]} and {got[:20]}"
            )
            if exact:
                raise ValueError(f"{message}; set exact_tokenizer to false to write it anyway")
            warnings.warn(message, stacklevel=4)
            return


def _write(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
