"""Which tokens may be drawn, and how often: equal to the logits processors of the transformers library."""

import pytest
import torch

from ingot.model.generation.sampling import Sampler, Sampling, apply_repetition_penalty, filter_logits, sample_at

LOGITS_1V = torch.tensor([[0.40, 0.05, 0.30, 0.15, 0.10]]).log()


def draws(sampling: Sampling, count: int, logits_1V=LOGITS_1V) -> torch.Tensor:
    """Draws of `count` rows with equal logits."""
    sampler = Sampler(sampling, [[0]] * count, range(count), logits_1V.shape[1], "cpu")
    return sampler(logits_1V.expand(count, -1))


@pytest.mark.parametrize(
    ("settings", "support"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {0, 2}),
        ({"top_k": 1}, {0}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.39}, {0}),
        ({"top_p": 0.69}, {0, 2}),
        ({"top_p": 0.71}, {0, 2, 3}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"top_p": 1e-9}, {0}),
        ({"top_k": 3, "top_p": 0.5}, {0, 2}),  # 0.40 of 0.85 is 0.47, so the second is needed
        ({"top_k": 3, "top_p": 0.45}, {0}),
        ({"min_p": 0.0}, {0, 1, 2, 3, 4}),
        ({"min_p": 0.3}, {0, 2, 3}),
        ({"min_p": 1.0}, {0}),
        ({"min_p": 0.3, "temperature": 0.5}, {0, 2}),  # 0.15^2 / 0.40^2 is 0.14
    ],
)
def test_the_support_is_restricted(settings, support):
    assert set(draws(Sampling(**settings), 400).tolist()) == support


def test_frequencies_follow_the_temperature():
    found = draws(Sampling(temperature=0.5), 4000).bincount(minlength=5) / 4000
    assert (found - (2 * LOGITS_1V[0]).softmax(0)).abs().max() < 0.03


def test_frequencies_along_a_row_follow_too():
    sampler = Sampler(Sampling(), [[0]], [7], 5, "cpu")
    found = torch.cat([sampler(LOGITS_1V) for _ in range(4000)]).bincount(minlength=5) / 4000
    assert (found - LOGITS_1V[0].softmax(0)).abs().max() < 0.03


def test_a_draw_is_the_inverse_of_the_cumulative_sum():
    uniforms = torch.tensor([0.0, 0.39, 0.41, 0.4499, 0.46, 0.74, 0.76, 0.8999, 0.91, 1 - 1e-12], dtype=torch.float64)
    assert sample_at(LOGITS_1V.expand(10, -1), uniforms).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    only_third = torch.tensor([[-torch.inf, -torch.inf, 0.0, -torch.inf]])
    assert sample_at(only_third.expand(2, -1), torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64)).tolist() == [2, 2]


def test_unlikely_tokens_keep_their_chance():
    """Each of 50,000 that have 1.5e-8: rounded to fp32, the sums before and after most of them are equal."""
    logits_1V = torch.full((1, 50_000), -18.0)
    logits_1V[0, 0] = 0.0
    each = float(logits_1V.double().softmax(-1)[0, 1])
    tokens = torch.arange(30_000, 30_020)
    middles = 1 - each * (50_000 - tokens.double() - 0.5)
    assert torch.equal(sample_at(logits_1V.expand(20, -1), middles), tokens)


def test_the_penalty_counts_what_is_written():
    logits_1V = torch.tensor([[2.0, 1.9, 1.8, -1.0]])
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=1.5), [[1]], [0], 4, "cpu")
    # 1 stands in the prompt; then 0 is written, then 2; then 2.0 / 1.5 is again the largest.
    assert [int(sampler(logits_1V)) for _ in range(3)] == [0, 2, 0]


def random_logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(6, 301, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"top_k": 20},
        {"top_p": 0.8},
        {"min_p": 0.05},
        {"temperature": 1.7, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 0.3, "top_p": 0.99, "min_p": 0.1},
    ],
)
def test_restrictions_are_those_of_transformers(settings, seed):
    lp = pytest.importorskip("transformers").generation.logits_process
    kinds = {
        "temperature": lp.TemperatureLogitsWarper,
        "top_k": lp.TopKLogitsWarper,
        "top_p": lp.TopPLogitsWarper,
        "min_p": lp.MinPLogitsWarper,
    }
    theirs = logits = random_logits(seed)
    for name, kind in kinds.items():  # in the order in which `transformers` applies them
        if name in settings:
            theirs = kind(settings[name])(None, theirs)
    ours = filter_logits(logits, Sampling(**settings))
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1))


@pytest.mark.parametrize("penalty", [0.8, 1.3, 2.0])
def test_the_penalty_is_that_of_transformers(penalty):
    lp = pytest.importorskip("transformers").generation.logits_process
    logits = random_logits(0)
    ids = torch.randint(0, 301, (6, 40), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(6, 301, dtype=torch.bool).scatter_(1, ids, True)
    theirs = lp.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    assert torch.equal(apply_repetition_penalty(logits, seen, penalty), theirs)
    assert not torch.equal(theirs, logits)
