import itertools
import math

import pytest
import torch

from ingot.parallel.optimizer import learning_rate_at, matrices, parameter_groups

SETTINGS = {"peak": 2.0, "warmup_steps": 10, "lr_decay_steps": 110, "min_lr_ratio": 0.1, "lr_decay_ratio": 0.2}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
def test_every_schedule_warms_up_peaks_and_keeps_its_floor(schedule):
    rate = [learning_rate_at(step, schedule=schedule, **SETTINGS) for step in range(1, 300)]
    assert rate[0] == pytest.approx(0.2)
    assert rate[9] == 2.0
    assert max(rate) == 2.0
    assert all(a >= b for a, b in itertools.pairwise(rate[9:]))
    assert rate[109] == rate[-1] == pytest.approx(2.0 if schedule == "constant" else 0.2)


def test_values_between():
    at = lambda step, schedule: learning_rate_at(step, schedule=schedule, **SETTINGS)  # noqa: E731
    assert at(60, "cosine") == pytest.approx(0.2 + 1.8 * 0.5)
    assert at(35, "linear") == pytest.approx(0.2 + 1.8 * 0.75)
    assert at(88, "wsd") == 2.0  # the last fifth, 22 of 110 steps, decays
    assert at(99, "wsd") == pytest.approx(0.2 + 1.8 * (1 - math.sqrt(0.5)))


def test_no_warmup_starts_at_the_peak():
    assert learning_rate_at(1, schedule="constant", **{**SETTINGS, "warmup_steps": 0}) == 2.0


def test_norms_and_biases_do_not_decay():
    module = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    decay, none = parameter_groups(module, 0.1, matrices(module))
    assert (decay["weight_decay"], none["weight_decay"]) == (0.1, 0.0)
    assert [p.shape for p in decay["params"]] == [(5, 4), (3, 4)]
    assert [p.shape for p in none["params"]] == [(3,), (3,), (3,)]
