"""Generation: neither cache nor batch changes a text, each row ends by itself, bad arguments are refused at once."""

import math

import pytest
import torch

from ingot.model.attention.kv_cache import KeyValueCache
from ingot.model.generation.generate import Sampling, complete, fill_mask, generate

PROMPT = [5, 17, 80, 2]
PROMPTS = [PROMPT, [9], [3, 3, 60, 41, 8, 12, 77], [1, 2, 30], [44, 12, 9, 6]]
GREEDY = Sampling(max_tokens=40, temperature=0)


def text_of(model, prompt=PROMPT, *, cache=True, rows=None, **settings) -> list[int]:
    (completion,) = complete(model, [prompt], Sampling(**settings), cache=cache, rows=rows)
    return completion.tokens


@pytest.mark.parametrize("kind", ["gpt", "modern"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_cache_changes_nothing(build, kind, temperature):
    model = build(kind, tie_word_embeddings=False)  # a random tied model only repeats its last token
    texts = [text_of(model, max_tokens=40, temperature=temperature, cache=on) for on in (True, False)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 40
    assert len(set(texts[0])) > 3


@pytest.mark.parametrize("kind", ["gpt", "modern"])
def test_cached_logits_equal_the_whole_forward(build, tokens, kind):
    model, ids = build(kind), tokens(2, 12)
    cache = KeyValueCache(model.config.num_hidden_layers, capacity=12)
    pieces = [model(piece, cache=cache) for piece in ids.split([5, 1, 4, 2], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), atol=2e-5, rtol=1e-5)
    assert cache.length == 12


def test_a_growing_cache_stays_where_it_is(build, tokens):
    model, ids = build("modern"), tokens(2, 12)
    cache, places = KeyValueCache(model.config.num_hidden_layers, capacity=12), set()
    for piece in ids.split([5, 1, 4, 2], dim=1):
        model(piece, cache=cache)
        new = torch.zeros(2, 0, 2, 8)
        places.add(tuple(part.data_ptr() for layer in cache.layers for part in layer.append(new, new)))
    assert len(places) == 1


@pytest.mark.parametrize("window", [0, 1, 5, 30])
def test_beyond_the_window_the_cache_still_changes_nothing(build, window):
    model = build(
        "modern", tie_word_embeddings=False, layer_pattern="LG", sliding_window=window + 1, qk_norm=False, qkv_bias=True
    )
    kept, anew = (complete(model, PROMPTS, GREEDY, cache=on) for on in (True, False))
    assert kept == anew
    everywhere = build("modern", tie_word_embeddings=False, qk_norm=False, qkv_bias=True)
    everywhere.load_state_dict(model.state_dict())
    assert complete(everywhere, PROMPTS, GREEDY) != kept, "the window has no effect, so this test would see nothing"


@pytest.mark.parametrize("kind", ["gpt", "modern"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_of_a_batch_are_what_they_are_alone(build, kind, temperature):
    model = build(kind, tie_word_embeddings=False)
    settings = Sampling(max_tokens=30, temperature=temperature, repetition_penalty=1.3, top_p=0.9)
    together = complete(model, PROMPTS, settings)
    alone = [complete(model, [prompt], settings, rows=[row])[0] for row, prompt in enumerate(PROMPTS)]
    assert together == alone
    assert len({tuple(completion.tokens) for completion in together}) == len(PROMPTS)
    backwards = complete(model, PROMPTS[::-1], settings, rows=range(len(PROMPTS))[::-1])
    assert backwards[::-1] == together


def test_greedy_is_the_argmax_and_needs_no_seed(build):
    model = build("gpt", tie_word_embeddings=False)
    texts = [text_of(model, max_tokens=10, temperature=0, seed=seed) for seed in (0, 1)]
    assert texts[0] == texts[1]
    ids = torch.tensor([PROMPT + texts[0]])
    assert model(ids)[0, len(PROMPT) - 1 : -1].argmax(-1).tolist() == texts[0]


def test_seed_and_row_decide_and_nothing_else(build):
    model = build("gpt")
    first = text_of(model, max_tokens=20, seed=3)
    torch.manual_seed(99)
    assert text_of(model, max_tokens=20, seed=3) == first
    assert text_of(model, max_tokens=10, seed=3) == first[:10]
    assert text_of(model, max_tokens=20, seed=4) != first
    assert text_of(model, max_tokens=20, seed=3, rows=[1]) != first


def test_each_row_ends_by_itself(build):
    model = build("gpt", tie_word_embeddings=False)
    settings = {"max_tokens": 20, "seed": 3}
    whole = [completion.tokens for completion in complete(model, PROMPTS, Sampling(**settings))]
    ends = (whole[0][7], whole[2][3])
    pieces = list(generate(model, PROMPTS, Sampling(**settings, eos_ids=ends)))
    for row, tokens in enumerate(whole):
        mine = [piece for piece in pieces if piece.row == row]
        length = min([tokens.index(end) + 1 for end in ends if end in tokens], default=20)
        assert [piece.token for piece in mine] == tokens[:length]
        assert [piece.finish_reason for piece in mine[:-1]] == [None] * (length - 1)
        assert mine[-1].finish_reason == ("eos" if mine[-1].token in ends else "length")
    assert {piece.finish_reason for piece in pieces} == {None, "eos", "length"}


def test_no_forward_follows_the_last_end(build):
    model, calls = build("gpt"), []
    end = text_of(model, max_tokens=1)[0]
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    assert text_of(model, max_tokens=20, eos_ids=(end,)) == [end]
    assert len(calls) == 1


def test_pieces_come_as_they_are_drawn(build):
    model, calls = build("gpt"), []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    stream = generate(model, PROMPTS[:2], Sampling(max_tokens=20))
    assert [next(stream).row for _ in range(3)] == [0, 1, 0]
    assert len(calls) == 2


def test_generation_turns_dropout_off_and_leaves_the_mode(build):
    model = build("gpt", dropout=0.5).train()
    texts = [text_of(model, max_tokens=10, temperature=0) for _ in range(2)]
    assert texts[0] == texts[1]
    assert model.training


def test_all_bad_arguments_are_refused_at_the_call(build):
    bad = Sampling(
        max_tokens=-1, temperature=math.nan, top_k=0, top_p=0, min_p=1.5, repetition_penalty=0, stop=("x", "")
    )
    with pytest.raises(ValueError, match="a prompt is empty") as error:
        generate(build("gpt"), [PROMPT, []], bad)
    named = ["max_tokens is -1", "temperature is nan", "top_k is 0", "top_p is 0", "min_p is 1.5"]
    for word in [*named, "repetition_penalty is 0", "stop string is empty", "pass decode"]:
        assert word in str(error.value)
    with pytest.raises(ValueError, match="there is no prompt"):
        generate(build("gpt"), [], GREEDY)
    with pytest.raises(ValueError, match="from 2 to 97"):
        generate(build("gpt"), [PROMPT, [3, 97]], GREEDY)
    with pytest.raises(ValueError, match="not causal"):
        generate(build("bert"), [PROMPT], GREEDY)


def test_positions_must_suffice(build):
    with pytest.raises(ValueError, match="at most 60"):
        generate(build("gpt"), [[1], PROMPT], Sampling(max_tokens=61))
    assert [len(c.tokens) for c in complete(build("gpt"), [[1], PROMPT], Sampling(max_tokens=60))] == [60, 60]
    assert len(text_of(build("modern"), max_tokens=70)) == 70
    assert text_of(build("gpt"), [1], max_tokens=0) == []


def test_a_long_prompt_does_not_shorten_the_other_rows(build):
    model = build("gpt")  # it has 64 learned positions
    prompts = [PROMPT, [1 + n % 90 for n in range(60)], [9], [2 + n % 90 for n in range(63)]]
    limits = [40, 4, 40, 1]
    together = complete(model, prompts, GREEDY, limits=limits)
    for prompt, limit, found in zip(prompts, limits, together, strict=True):
        (alone,) = complete(model, [prompt], Sampling(max_tokens=limit, temperature=0))
        assert found == alone
        assert len(found.tokens) == limit
    with pytest.raises(ValueError, match="a prompt of 60 tokens and 5 more exceed the 64 positions"):
        complete(model, prompts, GREEDY, limits=[40, 5, 40, 1])


def test_fill_mask_gives_the_likeliest_tokens(build):
    model, ids = build("bert"), [1, 96, 4, 96, 9]
    filled = fill_mask(model, ids, mask_id=96, top_k=3)
    probabilities = model(torch.tensor([ids])).softmax(-1)[0]
    assert len(filled) == 2
    for position, guesses in zip((1, 3), filled, strict=True):
        best = probabilities[position].topk(3)
        assert [token for token, _ in guesses] == best.indices.tolist()
        assert [p for _, p in guesses] == pytest.approx(best.values.tolist(), rel=1e-4)
    with pytest.raises(ValueError, match="none of the 2 tokens"):
        fill_mask(model, [1, 2], mask_id=96)
    with pytest.raises(ValueError, match="is causal"):
        fill_mask(build("gpt"), ids, mask_id=96)
    with pytest.raises(ValueError, match="65 tokens exceeds the 64 positions"):
        fill_mask(model, [96] * 65, mask_id=96)
