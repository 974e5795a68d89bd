"""Decoding with fixed shapes gives the tokens of the plain way, and one graph serves all tokens and prompts."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from ingot.model.config import RopeScaling
from ingot.model.generation import static_decoding
from ingot.model.generation.generate import Sampling, attention_kernels, complete

MODELS = {
    "gpt": ("gpt", {}),
    "grouped": ("modern", {}),
    "windows": ("modern", {"layer_pattern": "GL", "sliding_window": 5}),
}
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4]]  # the first is padded


@pytest.fixture
def counter(monkeypatch):
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(static_decoding, "BACKEND", counter)
    return counter


@pytest.mark.parametrize("kind", MODELS)
def test_the_tokens_are_those_of_the_plain_way_and_the_graph_is_one(build, kind, counter):
    name, changes = MODELS[kind]
    model = build(name, **changes)
    sampling = Sampling(max_tokens=20, temperature=0)
    for prompts in (PROMPTS, [[1, 2], [3, 4]], [[30, 31, 32, 33, 34], [2]]):
        expected = [text.tokens for text in complete(model, prompts, sampling)]
        got = [text.tokens for text in complete(model, prompts, sampling, compile=True)]
        assert got == expected
        assert len({token for text in got for token in text}) > 1
    assert counter.frame_count == 1


def test_sampled_tokens_too_and_a_model_in_training_stays_so(build, counter):
    model = build("gpt", dropout=0.5).train()
    sampling = Sampling(max_tokens=12, temperature=1.5, seed=3)
    expected, got = (complete(model, PROMPTS, sampling, compile=compile) for compile in (False, True))
    assert [text.tokens for text in got] == [text.tokens for text in expected]
    assert model.training
    assert counter.frame_count == 1


def test_what_needs_the_length_on_the_host_is_refused(build):
    scaling = RopeScaling("dynamic", 2.0, original_max_position_embeddings=32)
    model = build("modern", rope_scaling=scaling)
    with pytest.raises(ValueError, match="rope_scaling dynamic depends on the number of tokens so far"):
        complete(model, PROMPTS, Sampling(max_tokens=2), compile=True)


def test_cudnn_which_plans_for_each_number_of_keys_is_left_out_on_a_gpu():
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with attention_kernels(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
    with attention_kernels(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled()
