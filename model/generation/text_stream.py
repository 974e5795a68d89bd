"""Token ids to text while they come: only settled text is shown, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNSETTLED = "\ufffd"  # what a decoder puts where the bytes of a character are incomplete
_CONTEXT = 16  # tokens of the prompt that are decoded along: a first token that opens with a space keeps it


class TextStream:
    """The text of one row.

    Each token is decoded with a few before it, not with all: a decoder may drop a space at the beginning, and then the
    text that a token adds is what is left when its predecessors' text is taken away. What is before the last settled
    text is not looked at again, so a token costs the same however long the text is.

    Args:
        decode: token ids to text; special tokens may be left out.
        prompt: the tokens before, which are no part of the text.
        stop: strings that end the text.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int] = (), stop: Sequence[str] = ()):
        self._decode, self._stop = decode, stop
        self._ids = list(prompt[-_CONTEXT:])  # from the last settled text but one
        self._num_settled = len(self._ids)
        self._settled = decode(self._ids).rstrip(_UNSETTLED) if self._ids else ""
        self._held = ""  # settled, but perhaps the beginning of a stop string
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is now settled beyond what was given out; often empty. Sets `stopped` at a stop string."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(_UNSETTLED) or len(text) <= len(self._settled):
            return ""
        new = text[len(self._settled) :]
        self._ids = self._ids[self._num_settled :]
        self._num_settled = len(self._ids)
        self._settled = self._decode(self._ids)
        return self._give(new)

    def finish(self) -> str:
        """The rest, once no token follows: incomplete characters, and what might have become a stop string."""
        rest = "" if self.stopped else self._give(self._decode(self._ids)[len(self._settled) :])
        held, self._held = self._held, ""
        return rest + held

    def _give(self, new: str) -> str:
        text = self._held + new
        ends = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
