"""Generation: the cache changes nothing, draws stay in their support, bad arguments are refused at the call."""

import math

import pytest
import torch

from model.generation import fill_mask, generate, sample
from model.kv_cache import KeyValueCache

PROMPT = [5, 17, 80, 2]


@pytest.mark.parametrize("kind", ["gpt", "modern"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_cache_changes_nothing(build, kind, temperature):
    model = build(kind, tie_head=False)  # a random tied model only repeats its last token
    texts = [list(generate(model, PROMPT, max_tokens=40, temperature=temperature, cache=on)) for on in (True, False)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 40
    assert len(set(texts[0])) > 3


@pytest.mark.parametrize("kind", ["gpt", "modern"])
def test_cached_logits_equal_the_whole_forward(build, tokens, kind):
    model, ids = build(kind), tokens(2, 12)
    cache = KeyValueCache(model.config.num_layers, capacity=12)
    pieces = [model(piece, cache=cache) for piece in ids.split([5, 1, 4, 2], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), atol=2e-5, rtol=1e-5)
    assert cache.length == 12


def test_greedy_is_the_argmax_and_needs_no_seed(build):
    model = build("gpt", tie_head=False)
    texts = [list(generate(model, PROMPT, max_tokens=10, temperature=0, seed=seed)) for seed in (0, 1)]
    assert texts[0] == texts[1]
    ids = torch.tensor([PROMPT + texts[0]])
    assert model(ids)[0, len(PROMPT) - 1 : -1].argmax(-1).tolist() == texts[0]


def test_the_seed_decides_and_nothing_else(build):
    model = build("gpt")
    first = list(generate(model, PROMPT, max_tokens=20, seed=3))
    torch.manual_seed(99)
    assert list(generate(model, PROMPT, max_tokens=20, seed=3)) == first
    assert list(generate(model, PROMPT, max_tokens=20, seed=4)) != first


def test_the_text_ends_with_the_end_token(build):
    model = build("gpt")
    whole = list(generate(model, PROMPT, max_tokens=20, seed=3))
    eos = whole[7]
    assert list(generate(model, PROMPT, max_tokens=20, seed=3, eos_id=eos)) == whole[: whole.index(eos) + 1]


def test_generation_turns_dropout_off_and_leaves_the_mode(build):
    model = build("gpt", dropout=0.5).train()
    texts = [list(generate(model, PROMPT, max_tokens=10, temperature=0)) for _ in range(2)]
    assert texts[0] == texts[1]
    assert model.training


LOGITS = torch.tensor([0.40, 0.05, 0.30, 0.15, 0.10]).log()


@pytest.mark.parametrize(
    ("top_k", "top_p", "support"),
    [
        (None, None, {0, 1, 2, 3, 4}),
        (2, None, {0, 2}),
        (1, None, {0}),
        (99, None, {0, 1, 2, 3, 4}),
        (None, 0.39, {0}),
        (None, 0.69, {0, 2}),
        (None, 0.71, {0, 2, 3}),
        (None, 1.0, {0, 1, 2, 3, 4}),
        (3, 0.5, {0, 2}),  # 0.40 of 0.85 is 0.47, so the second is needed
        (3, 0.45, {0}),
    ],
)
def test_top_k_and_top_p_restrict_the_support(top_k, top_p, support):
    generator = torch.Generator().manual_seed(0)
    assert {sample(LOGITS, 1.0, top_k, top_p, generator) for _ in range(400)} == support


def test_frequencies_follow_the_temperature():
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([sample(LOGITS, 0.5, None, None, generator) for _ in range(4000)])
    expected = (2 * LOGITS).softmax(0)
    assert (draws.bincount(minlength=5) / 4000 - expected).abs().max() < 0.03


def test_all_bad_arguments_are_refused_at_the_call(build):
    with pytest.raises(ValueError, match="prompt is empty") as error:
        generate(build("gpt"), [], max_tokens=-1, temperature=math.nan, top_k=0, top_p=1.5)
    for word in ("max_tokens is -1", "temperature is nan", "top_k is 0", "top_p is 1.5"):
        assert word in str(error.value)
    with pytest.raises(ValueError, match="from 3 to 97"):
        generate(build("gpt"), [3, 97], max_tokens=1)
    with pytest.raises(ValueError, match="not causal"):
        generate(build("bert"), PROMPT, max_tokens=1)


def test_positions_must_suffice(build):
    with pytest.raises(ValueError, match="at most 60 tokens"):
        generate(build("gpt"), PROMPT, max_tokens=61)
    assert len(list(generate(build("gpt"), PROMPT, max_tokens=60))) == 60
    assert len(list(generate(build("modern"), PROMPT, max_tokens=70))) == 70
    assert list(generate(build("gpt"), [1], max_tokens=0)) == []


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
