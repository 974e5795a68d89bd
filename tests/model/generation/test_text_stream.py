"""Text while it comes: joined, it is the decoded whole; a stop string ends it and never shows."""

from itertools import pairwise

import pytest

from ingot.model.generation.generate import Sampling, complete, generate
from ingot.model.generation.text_stream import TextStream


def decode_bytes(ids: list[int]) -> str:
    """As byte-level tokenizers do: a character may take several tokens."""
    return bytes(ids).decode(errors="replace")


WORDS = ["<s>", "▁a", "▁to", "ken", "▁", "s", ".", "▁ö"]


def decode_words(ids: list[int]) -> str:
    """As SentencePiece does: the space that leads the whole goes; special tokens are left out."""
    return "".join(WORDS[i] for i in ids if i).replace("▁", " ").removeprefix(" ")


def streamed(decode, ids, prompt=(), stop=()) -> tuple[list[str], bool]:
    stream, parts = TextStream(decode, prompt, stop), []
    for token in ids:
        parts.append(stream.add(token))
        if stream.stopped:
            break
    return [*parts, stream.finish()], stream.stopped


@pytest.mark.parametrize("text", ["plain", "naïve … 🙂🙂 日本語", "ends in half of one: é"])
def test_bytes_wait_for_their_character(text):
    ids = list(text.encode())
    for length in range(len(ids) + 1):
        parts, _ = streamed(decode_bytes, ids[:length])
        assert "".join(parts) == decode_bytes(ids[:length])
        assert not any("\ufffd" in part for part in parts[:-1])


def test_bytes_that_are_no_text_are_shown_once_text_follows():
    ids = [0xFF, 0xC3, ord("a"), 0xE2, 0x82]
    parts, _ = streamed(decode_bytes, ids)
    assert "".join(parts) == decode_bytes(ids)
    assert parts[2] == "\ufffd\ufffda"


@pytest.mark.parametrize("prompt", [[], [1], [0], [1, 2, 3], [1] * 40, [4]])
def test_spaces_that_lead_a_token_stay(prompt):
    ids = [2, 3, 5, 6, 1, 0, 4, 2, 7, 4, 4, 1, 0, 0, 6]
    parts, _ = streamed(decode_words, ids, prompt)
    whole = decode_words([*prompt, *ids])
    assert "".join(parts) == whole[len(decode_words(prompt)) :]


def test_a_token_costs_the_same_however_long_the_text_is():
    longest = 0

    def decode(ids):
        nonlocal longest
        longest = max(longest, len(ids))
        return decode_bytes(ids)

    streamed(decode, b"a" * 1000, prompt=b"b" * 1000)
    assert longest < 20


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one. two. three", ["two"], "one. "),
        ("one. two. three", ["three", "two"], "one. "),
        ("one. two", ["."], "one"),
        ("aaab", ["aab"], "a"),
        ("ababac", ["abac"], "ab"),
        ("x\n\ny", ["\n\n"], "x"),
        ("x\ny\n", ["\n\n"], "x\ny\n"),
        ("überall 🙂 hier", ["🙂"], "überall "),
        ("stop", ["stop"], ""),
        ("no end, sto", ["stop", "end of"], "no end, sto"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_stop_string_ends_the_text_and_never_shows(text, stop, shown, size):
    """Tokens of some bytes each, so that stop strings lie across them in all ways."""
    raw = text.encode()
    pieces = [raw[i : i + size] for i in range(0, len(raw), size)]
    parts, stopped = streamed(lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace"), range(len(pieces)))
    assert "".join(parts) == text
    parts, stopped = streamed(
        lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace"), range(len(pieces)), stop=stop
    )
    assert "".join(parts) == shown
    assert stopped == (shown != text)


def test_what_is_held_back_comes_when_it_is_no_stop_string():
    parts, _ = streamed(decode_bytes, b"a sto to", stop=["stop"])
    assert parts == ["a", " ", "", "", "", "sto ", "t", "o", ""]


def test_rows_of_a_model_stop_at_their_strings(build):
    model = build("gpt", tie_word_embeddings=False)
    decode = lambda ids: "".join(chr(97 + i % 26) for i in ids)  # noqa: E731
    prompts, settings = [[5, 17, 80, 2], [9]], {"max_tokens": 40, "seed": 1}
    whole = complete(model, prompts, Sampling(**settings), decode=decode)
    assert [c.text for c in whole] == [decode(c.tokens) for c in whole]
    stop = whole[0].text[10:13]
    assert stop not in whole[1].text
    pieces = list(generate(model, prompts, Sampling(**settings, stop=(stop,)), decode=decode))
    first = [piece for piece in pieces if piece.row == 0]
    assert "".join(piece.text for piece in first) == whole[0].text[: whole[0].text.index(stop)]
    assert first[-1].finish_reason == "stop"
    assert [piece.token for piece in first] == whole[0].tokens[: whole[0].text.index(stop) + 3]
    second = [piece for piece in pieces if piece.row == 1]
    assert "".join(piece.text for piece in second) == whole[1].text
    assert second[-1].finish_reason == "length"
    assert all(earlier.finish_reason is None for row in (first, second) for earlier, _ in pairwise(row))
