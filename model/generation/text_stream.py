"""Token ids to text while they are generated: only complete text is emitted, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"  # decoders write it if the bytes of a character are incomplete
_CONTEXT = 16  # tokens of the prompt that are decoded too, so that a first token keeps its leading space


class TextStream:
    """The text of one row.

    Each token is decoded together with a few tokens before it, because a decoder may remove a space at the beginning.
    The text of a token is the difference to the text without it. Tokens before the last complete text are not decoded
    again, so the time per token does not grow with the text.

    Args:
        decode: token ids to text; special tokens may be left out.
        prompt: the tokens before; they are not part of the text.
        stop: strings that end the text.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int] = (), stop: Sequence[str] = ()):
        self._decode, self._stop = decode, stop
        self._ids = list(prompt[-_CONTEXT:])  # from the last but one complete text on
        self._num_complete = len(self._ids)
        self._complete = decode(self._ids).rstrip(_INCOMPLETE) if self._ids else ""
        self._pending = ""  # complete, but possibly the beginning of a stop string
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is complete with this token and was not emitted before; often empty. Sets `stopped` at a stop
        string."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(_INCOMPLETE) or len(text) <= len(self._complete):
            return ""
        new = text[len(self._complete) :]
        self._ids = self._ids[self._num_complete :]
        self._num_complete = len(self._ids)
        self._complete = self._decode(self._ids)
        return self._emit(new)

    def finish(self) -> str:
        """The rest of the text, after the last token: incomplete characters, and the beginning of a possible stop
        string."""
        rest = "" if self.stopped else self._emit(self._decode(self._ids)[len(self._complete) :])
        pending, self._pending = self._pending, ""
        return rest + pending

    def _emit(self, new: str) -> str:
        text = self._pending + new
        ends = [index for index in (text.find(stop) for stop in self._stop) if index >= 0]
        if ends:
            self.stopped, self._pending = True, ""
            return text[: min(ends)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._pending = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
