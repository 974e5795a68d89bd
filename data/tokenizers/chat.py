"""Chats as token ids, by a tokenizer's chat template, with the tokens that the assistant said.

The text of a message is always text: a special token that is spelled in it does not become one. What the template
itself writes does.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ingot.data.tokenizers.tokenizer import Tokenizer

RENDERER = Path(__file__).with_name("chat_renderer.py")
CHATS_AT_ONCE = 2000
SECONDS, SECONDS_PER_CHAT = 20, 0.05
LONGEST_TEMPLATE = 1_000_000
"""Limits of a template: characters, and time; chat_renderer.py limits the memory."""
PLACEHOLDERS = range(0x100000, 0x10FFFE)
"""Characters of private use, which stand for special tokens that are spelled in messages, and mark what is learned."""
ASSISTANT = "assistant"
Messages = Sequence[Mapping[str, Any]]
Marked = tuple[str, list[tuple[int, int]]]
"""A text, and begin and end of each part that the assistant said, in characters."""
_PRIVATE = re.compile(f"[{chr(PLACEHOLDERS[0])}-{chr(PLACEHOLDERS[-1])}]")


@dataclass(frozen=True)
class ChatIds:
    """A chat, or the part of one that leads up to an answer, as token ids.

    Attributes:
        ids: int64 [tokens].
        learned: bool [tokens], what the assistant said. A token of which only a part is, counts.
    """

    ids: np.ndarray
    learned: np.ndarray


class ChatEncoder:
    """Encodes chats with the chat template of a tokenizer.

    Raises:
        ValueError: the tokenizer has no template, or one that is no Jinja template.
    """

    def __init__(self, tokenizer: Tokenizer):
        if tokenizer.chat_template is None:
            raise ValueError(f"the tokenizer {tokenizer.folder} has no chat template; write chat_template.jinja there")
        if len(tokenizer.chat_template) > LONGEST_TEMPLATE:
            raise ValueError(
                f"the chat template of {tokenizer.folder} has {len(tokenizer.chat_template):,} characters; at most "
                f"{LONGEST_TEMPLATE:,} are read"
            )
        self.tokenizer, self.template = tokenizer, tokenizer.chat_template
        self.marks_turns = re.search(r"\{%-?\s*generation\s*-?%\}", self.template) is not None
        specials = list(tokenizer.special_pieces)
        self._marks = (chr(PLACEHOLDERS[0]), chr(PLACEHOLDERS[1]))
        self._placeholder = {piece: chr(PLACEHOLDERS[n + 2]) for n, piece in enumerate(specials[:50_000])}
        self._piece = {character: piece for piece, character in self._placeholder.items()}
        self._spelled = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)")
        ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id, "mask": tokenizer.mask_id}
        pieces = tokenizer.pieces()
        self._variables = {f"{name}_token": pieces[i] for name, i in ids.items() if i is not None}
        self._variables |= tokenizer.named_tokens

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: those that end a text, and the one that the template writes behind it."""
        ends = self.tokenizer.end_ids
        probe = [{"role": "user", "content": "a"}, {"role": ASSISTANT, "content": "b"}]
        try:
            (chat, *_), *_ = self.whole([(probe, "a question and an answer")])
        except ValueError:  # a template that wants other messages
            return ends
        special = np.isin(chat.ids, list(self.tokenizer.special_pieces.values()))
        answer = np.flatnonzero(chat.learned & ~special)
        behind = np.flatnonzero(special[answer[0] :]) if len(answer) else np.empty(0, np.int64)
        return tuple(dict.fromkeys([*ends, *(int(chat.ids[answer[0] + place]) for place in behind[:1])]))

    def prompts(self, chats: Iterable[tuple[Messages, str]]) -> Iterator[np.ndarray]:
        """The ids of each chat up to where the assistant answers.

        Args:
            chats: messages, and where they come from, for messages of errors.
        """
        for chunk in _chunks(chats):
            texts = self._render([(messages, True) for messages, _ in chunk], [where for _, where in chunk])
            yield from (chat.ids for chat in self._encode(map(self._unmarked, texts)))

    def whole(self, chats: Iterable[tuple[Messages, str]]) -> Iterator[list[ChatIds]]:
        """Each chat with what the assistant said. It is one text; but where the template renders a turn differently
        once others follow, each answer is a text of its own, with the turns before it.

        Raises:
            ValueError: the template renders what comes before an answer differently once the answer follows.
        """
        for chunk in _chunks(chats):
            if self.marks_turns:
                texts = self._render([(messages, False) for messages, _ in chunk], [where for _, where in chunk])
                yield from ([chat] for chat in self._encode(map(self._unmarked, texts)))
                continue
            requests, places = [], []
            for messages, where in chunk:
                answers = [n for n, message in enumerate(messages) if message["role"] == ASSISTANT]
                parts = [(messages[:n], True) for n in answers] + [(messages[: n + 1], False) for n in answers]
                requests += [(messages, False), *parts]
                places += [where] * (1 + len(parts))
            rendered, parts_of = iter(self._render(requests, places)), []
            for messages, where in chunk:
                whole = next(rendered)
                count = sum(message["role"] == ASSISTANT for message in messages)
                before, after = list(islice(rendered, count)), list(islice(rendered, count))
                parts_of.append(self._by_prefixes(whole, before, after, where))
            encoded = self._encode(part for parts in parts_of for part in parts)
            yield from (list(islice(encoded, len(parts))) for parts in parts_of)

    def _by_prefixes(self, whole: str, before: list[str], after: list[str], where: str) -> list[Marked]:
        """What each answer adds to the text before it is what the assistant said."""
        for one, two in zip(before, after, strict=True):
            if not (two.startswith(one) and len(two) > len(one)):
                raise ValueError(
                    f"{where}: the chat template of {self.tokenizer.folder} writes what comes before an answer in "
                    f"another way once the answer follows, so what the assistant said cannot be told; mark it in the "
                    f"template with {{% generation %}} and {{% endgeneration %}}"
                )
        spans = [(len(one), len(two)) for one, two in zip(before, after, strict=True)]
        if all(whole.startswith(text) for text in after):
            return [(whole, spans)]
        return [(text, [span]) for text, span in zip(after, spans, strict=True)]

    def _unmarked(self, text: str) -> Marked:
        """A text without the marks around what is learned."""
        parts = re.split("|".join(self._marks), text)
        ends = np.cumsum([len(part) for part in parts]).tolist()
        return "".join(parts), list(zip(ends[0:-1:2], ends[1::2], strict=True))

    def _render(self, chats: list[tuple[Messages, bool]], where: list[str]) -> list[str]:
        protected = [(self._protect(messages, at), ask) for (messages, ask), at in zip(chats, where, strict=True)]
        given = {
            "template": self.template,
            "variables": self._variables,
            "chats": protected,
            "marks": self._marks if self.marks_turns else ("", ""),
            "seconds": (limit := int(SECONDS + SECONDS_PER_CHAT * len(chats))),
        }
        command = [sys.executable, "-P", str(RENDERER)]
        place = f"the chat template of {self.tokenizer.folder}"
        try:
            done = subprocess.run(command, input=json.dumps(given).encode(), capture_output=True, timeout=limit)
        except subprocess.TimeoutExpired:
            raise ValueError(f"{place} takes more than {limit} seconds for {len(chats)} chats; simplify it") from None
        try:
            found = json.loads(done.stdout)
        except ValueError:
            raise ValueError(
                f"{place} takes more memory than it may, or stopped its process ({done.returncode})"
            ) from None
        if isinstance(found, dict):
            raise ValueError(f"{place} cannot be used: {found['error']}")
        for text, at in zip(found, where, strict=False):  # it ends with the first error
            if isinstance(text, dict):
                raise ValueError(f"{at}: {place} refuses the messages: {text['error']}")
        return found

    def _protect(self, value: Any, where: str) -> Any:
        """The messages with a character in place of each special token that a text spells."""
        if isinstance(value, str):
            if _PRIVATE.search(value):
                raise ValueError(f"{where}: a message has a character of private use (U+100000 to U+10FFFD); remove it")
            return self._spelled.sub(lambda found: self._placeholder[found[0]], value)
        if isinstance(value, Mapping):
            return {key: self._protect(inner, where) for key, inner in value.items()}
        return [self._protect(inner, where) for inner in value] if isinstance(value, list | tuple) else value

    def _encode(self, texts: Iterable[Marked]) -> Iterator[ChatIds]:
        """Ids of rendered texts."""
        texts = list(texts)
        usual = iter(self.tokenizer.encode_templates([text for text, _ in texts if not _PRIVATE.search(text)]))
        for text, spans in texts:
            ids, offsets = self._encode_protected(text) if _PRIVATE.search(text) else next(usual)
            learned = np.zeros(len(ids), bool)
            for begin, end in spans:
                learned |= (offsets[:, 1] > begin) & (offsets[:, 0] < end)
            yield ChatIds(np.array(ids, np.int64), learned)

    def _encode_protected(self, text: str) -> tuple[list[int], np.ndarray]:
        """Ids and offsets in `text`, of a text in which characters stand for special tokens that are text."""
        ids: list[int] = []
        offsets, begin = [np.empty((0, 2), np.int64)], 0
        for found in [*self._spelled.finditer(text), None]:
            part = text[begin : found.start() if found else None]
            spelled = [self._piece.get(character, character) for character in part]
            place = np.repeat(np.arange(len(part) + 1), [*map(len, spelled), 1])  # of each character, in `part`
            ((inner, at),) = self.tokenizer.encode_with_offsets(["".join(spelled)])
            ids += inner
            last = place[np.maximum(at[:, 1] - 1, at[:, 0])] + (at[:, 1] > at[:, 0])
            offsets.append(np.stack([place[at[:, 0]], last], axis=1) + begin)
            if found:
                ids.append(self.tokenizer.special_pieces[found[0]])
                offsets.append(np.array([found.span()]))
                begin = found.end()
        return ids, np.concatenate(offsets)


def _chunks(chats: Iterable[tuple[Messages, str]]) -> Iterator[list[tuple[Messages, str]]]:
    rest = iter(chats)
    while chunk := list(islice(rest, CHATS_AT_ONCE)):
        yield chunk
