"""Commands end with 0 or 2, in seconds and without a traceback, whatever value an option has."""

import pytest

from ingot.launcher.config.reference import COMMANDS
from ingot.launcher.config.schema.options import options
from tests.launcher.option_fuzz import Case, Inputs, cases, problems

FOUND = [
    Case("generate", "num_samples", "1000000"),
    Case("evaluate", "batch_size", "100000"),
    Case("prepare", "workers", "1024"),
    Case("plan", "model.num_hidden_layers", "1000"),
    Case("pretrain", "optimizer.eps", "1e-320"),
    Case("pretrain", "run.name", "a" * 5000),
]
"""Some that took all memory or had no end before they had limits."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"))


def test_each_option_has_cases():
    for command, cls in COMMANDS.items():
        assert {case.option for case in cases(command)} == {option.name for option in options(cls)}


def test_what_was_found_once(inputs, tmp_path):
    assert problems(FOUND, inputs, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_all_values_of_all_options(command, inputs, tmp_path):
    assert problems(cases(command), inputs, tmp_path) == []
