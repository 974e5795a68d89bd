"""Tiny models for the tests of `model`."""

from collections.abc import Callable

import pytest
import torch

from ingot.model.config import ModelConfig
from ingot.model.initialization import initialize
from ingot.model.transformer import LanguageModel

SHAPE = {
    "vocab_size": 97,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "max_position_embeddings": 64,
}
KINDS = {
    "gpt": {},
    "bert": {
        "causal": False,
        "norm_placement": "post",
        "activation": "gelu",
        "type_vocab_size": 2,
        "embedding_norm": True,
        "head_transform": True,
        "head_bias": True,
        "residual_scaled_init": False,
    },
    "modern": {
        "positions": "rotary",
        "norm": "rmsnorm",
        "activation": "silu",
        "gated_mlp": True,
        "bias": False,
        "num_key_value_heads": 2,
        "qk_norm": True,
    },
}


@pytest.fixture
def build() -> Callable[..., LanguageModel]:
    """A function that builds a model of a kind with changed fields; its weights are large, so that errors show."""

    def _build(kind: str, **changes) -> LanguageModel:
        model = LanguageModel(ModelConfig(**{**SHAPE, "initializer_range": 0.2, **KINDS[kind], **changes}))
        initialize(model, seed=1)
        return model.eval()

    return _build


@pytest.fixture
def tokens() -> Callable[..., torch.Tensor]:
    """A function that draws token ids (batch, length)."""

    def _tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
        return torch.randint(0, SHAPE["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))

    return _tokens
