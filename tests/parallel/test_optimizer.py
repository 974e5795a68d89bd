import itertools
from collections.abc import Callable

import pytest
import torch
from transformers import optimization

from ingot.parallel.optimizer import learning_rate_at, matrices, parameter_groups

PEAK, STEPS = 2.0, 110


def rates(schedule: str, warmup: int, ratio: float, decay: float = 0.2) -> list[float]:
    """The rate of each step of a run, and of some more."""
    settings = {"warmup_steps": warmup, "lr_decay_steps": STEPS, "min_lr_ratio": ratio, "lr_decay_ratio": decay}
    return [learning_rate_at(step, peak=PEAK, schedule=schedule, **settings) for step in range(1, STEPS + 20)]


def rates_of_transformers(make: Callable, num_steps: int, **arguments) -> list[float]:
    """The rate that each step of a `Trainer` takes: its scheduler moves on after the optimizer."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler, found = make(optimizer, **arguments), []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup", [0, 1, 10, 109, STEPS])
@pytest.mark.parametrize(
    ("schedule", "ratio", "make", "arguments"),
    [
        ("constant", 0.0, optimization.get_constant_schedule_with_warmup, {}),
        ("inverse_sqrt", 0.0, optimization.get_inverse_sqrt_schedule, {}),
        ("linear", 0.0, optimization.get_linear_schedule_with_warmup, {"num_training_steps": STEPS}),
        ("cosine", 0.0, optimization.get_cosine_schedule_with_warmup, {"num_training_steps": STEPS}),
        (
            "cosine",
            0.1,
            optimization.get_cosine_with_min_lr_schedule_with_warmup,
            {"num_training_steps": STEPS, "min_lr_rate": 0.1},
        ),
    ],
)
def test_each_step_has_the_rate_that_transformers_gives_it(schedule, ratio, make, arguments, warmup):
    """Up to the end of the schedule; after it the cosine of transformers rises again."""
    theirs = rates_of_transformers(make, STEPS, num_warmup_steps=warmup, **arguments)
    assert rates(schedule, warmup, ratio)[:STEPS] == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(("warmup", "ratio"), [(0, 0.0), (10, 0.0), (100, 0.0), (0, 0.1)])
def test_wsd_has_the_rates_of_transformers(warmup, ratio):
    """There a warm-up begins at the minimum, and in all others at 0, as here in each."""
    decay = min(22, STEPS - warmup)
    arguments = {"num_training_steps": STEPS, "num_decay_steps": decay, "decay_type": "1-sqrt", "min_lr_ratio": ratio}
    theirs = rates_of_transformers(optimization.get_wsd_schedule, STEPS + 19, num_warmup_steps=warmup, **arguments)
    assert rates("wsd", warmup, ratio) == pytest.approx(theirs, rel=1e-12)


def test_five_steps_use_all_their_steps():
    settings = {"peak": 1.0, "warmup_steps": 0, "lr_decay_steps": 5, "min_lr_ratio": 0.0, "lr_decay_ratio": 0.2}
    found = [learning_rate_at(step, schedule="linear", **settings) for step in range(1, 6)]
    assert found == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
def test_every_schedule_warms_up_peaks_and_keeps_its_floor(schedule):
    rate = rates(schedule, 10, 0.1)
    assert rate[:2] == [0.0, pytest.approx(0.2)]
    assert rate[10] == max(rate) == PEAK
    assert all(a >= b for a, b in itertools.pairwise(rate[10:]))
    assert rate[STEPS] == rate[-1] == pytest.approx(2.0 if schedule == "constant" else 0.2)


def test_norms_and_biases_do_not_decay():
    module = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    decay, none = parameter_groups(module, 0.1, matrices(module))
    assert (decay["weight_decay"], none["weight_decay"]) == (0.1, 0.0)
    assert [p.shape for p in decay["params"]] == [(5, 4), (3, 4)]
    assert [p.shape for p in none["params"]] == [(3,), (3,), (3,)]
