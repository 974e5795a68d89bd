"""Steps that follow from epochs and tokens, with the batch sizes of a ramp."""

from dataclasses import replace

import pytest

from ingot.data.corpus.shards import Corpus
from ingot.data.loader.reader import Reader
from ingot.data.tokenizers.load import load_tokenizer
from ingot.launcher.config.parser import parse
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.training.batch_sizes import BatchSizes
from ingot.launcher.training.build import reader_options
from ingot.launcher.training.run_length import with_steps


def config_of(corpus, *argv: str) -> TrainConfig:
    return parse(TrainConfig, ["--data.train", str(corpus), "--data.sequence_length", "32", *argv], "")


def test_steps_for_is_the_inverse_of_slots_before():
    for sizes in (BatchSizes(8), BatchSizes(8, ((2, 3), (3, 5)))):
        for slots in range(1, 60):
            steps = sizes.steps_for(slots)
            assert sizes.slots_before(steps) < slots <= sizes.slots_before(steps + 1)


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
@pytest.mark.parametrize("epochs", ["1", "2.5"])
def test_epochs_are_passes_over_what_the_reader_reads(corpus, packing, epochs):
    config = config_of(corpus, "--run.epochs", epochs, "--batch.global_size", "16", "--data.packing", packing)
    opened = Corpus.open(str(corpus), "train")
    resolved = with_steps(config, [opened, opened])
    options = replace(reader_options(config), weights=None, mixture_schedule=None)
    reader = Reader([opened, opened], load_tokenizer(opened.tokenizer_folder), options)
    assert 0 <= resolved.run.num_steps * 16 - float(epochs) * reader.num_instances < 16 + 1
    assert (resolved.run.epochs, resolved.run.tokens) == (None, None)
    assert resolved == replace(config, run=resolved.run)


def test_tokens_count_with_the_ramp(corpus):
    ramp = ["--batch.ramp", "[{steps: 2, global_size: 8}]", "--batch.global_size", "16"]
    assert with_steps(config_of(corpus, "--run.tokens", "1600", *ramp), []).run.steps == 5  # 50 sequences: 8 8 16 16 2
    assert with_steps(config_of(corpus, "--run.tokens", "1", *ramp), []).run.steps == 1


def test_the_length_is_given_once(corpus):
    assert with_steps(config_of(corpus), []).run.steps == 1000
    config = config_of(corpus, "--run.steps", "3", "--run.epochs", "1")
    with pytest.raises(ValueError, match=r"run.steps and run.epochs are given; give one of them"):
        config.check(1)
    with pytest.raises(ValueError, match=r"would be [\d,]+ steps long, and 10\^9 are the most"):
        with_steps(config_of(corpus, "--run.tokens", str(10**15), "--batch.global_size", "1"), [])
