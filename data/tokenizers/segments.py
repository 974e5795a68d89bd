"""Long texts in segments that have the same token ids one by one as together.

The tokenizers library needs 150 bytes and more for each token of the texts that it encodes at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# A line end after a visible character and before a letter: a token may end with it, but none goes on behind it. That
# holds for the rules below, as each of their alternatives either is a run of one kind of characters, or ends with
# line ends; and of several white-space characters in a row a rule could keep the last one for the word.
_PLACE = re.compile(r"(?<=\S\n)(?=[A-Za-z])")
# GPT-2's own rule is the default of ByteLevel. These are those of Llama 3, and of Qwen 2 and 3.
_RULES = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
}
SEGMENT = 500_000  # characters


def can_be_divided(tokenizer: Any) -> bool:
    """Whether a tokenizer of `transformers` gives the segments of a text the ids that the text has.

    Known are byte-level tokenizers with the rules of GPT-2, Llama 3 and Qwen, and those of BERT.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or any(
        not token.special and (token.lstrip or token.rstrip or "\n" in token.content)
        for token in tokenizer.added_tokens_decoder.values()
    ):
        return False
    normalizer, rule = _settings(backend.normalizer), _settings(backend.pre_tokenizer)
    if normalizer.get("type") not in (None, "NFC", "BertNormalizer"):
        return False
    steps = rule.get("pretokenizers", [rule])
    kinds = [step.get("type") for step in steps]
    if kinds == ["BertPreTokenizer"]:
        return True
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return False
    if kinds == ["ByteLevel"]:
        return bool(steps[0].get("use_regex"))
    return (
        kinds == ["Split", "ByteLevel"]
        and not steps[1].get("use_regex")
        and steps[0].get("behavior") == "Isolated"
        and not steps[0].get("invert")
        and steps[0].get("pattern", {}).get("Regex") in _RULES
    )


def segments(text: str) -> Iterator[str]:
    """A text in segments of about SEGMENT characters; longer where it has no place to divide it."""
    begin = 0
    while len(text) - begin > SEGMENT and (place := _PLACE.search(text, begin + SEGMENT)):
        yield text[begin : place.start()]
        begin = place.start()
    yield text[begin:]


def _settings(part: Any) -> dict:
    """The settings of a part of a tokenizer, as in its tokenizer.json."""
    return {} if part is None else json.loads(part.__getstate__())
