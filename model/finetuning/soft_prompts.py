"""Soft prompts: virtual tokens that are trained while the model is frozen. Prompt tuning (Lester et al. 2021, arXiv
2104.08691), P-tuning (Liu et al. 2021, arXiv 2103.10385) and prefix tuning (Li and Liang 2021, arXiv 2101.00190).

In a text the virtual tokens have the ids -1, -2, ... The first two methods train their embeddings. Prefix tuning trains
the keys and values that other tokens see of them, in every layer.

Legend: B rows, T time, D hidden size, P virtual tokens, F features of keys, and of values.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ingot.model.transformer import Transformer


class PromptedEmbedding(nn.Module):
    """A token embedding with virtual tokens.

    Args:
        base_layer: the embedding of the vocabulary.
        prompt_encoder: maps indices of virtual tokens (P,) to their embeddings (P, D), or, in prefix tuning, to their
            keys and values of all layers.
        num_virtual_tokens: P.
        is_prefix: whether the encoder gives keys and values. The embeddings of virtual tokens are then 0.
    """

    def __init__(self, base_layer: nn.Embedding, prompt_encoder: nn.Module, num_virtual_tokens: int, is_prefix: bool):
        super().__init__()
        self.base_layer, self.prompt_encoder = base_layer, prompt_encoder
        self.num_virtual_tokens, self.is_prefix = num_virtual_tokens, is_prefix
        # Of the current forward: the positions of virtual tokens, and their keys and values.
        self.prefix: tuple[tuple[Tensor, ...], Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.base_layer(ids_BT.clamp(min=0))
        indices = torch.arange(self.num_virtual_tokens, device=ids_BT.device)
        encoded = self.prompt_encoder(indices)
        positions = (ids_BT < 0).nonzero(as_tuple=True)
        index = -1 - ids_BT[positions]
        if self.is_prefix:
            self.prefix = (positions, encoded[index])
            return x_BTD.index_put(positions, torch.zeros((), dtype=x_BTD.dtype, device=x_BTD.device))
        return x_BTD.index_put(positions, encoded[index].to(x_BTD.dtype))


class PrefixedLinear(nn.Module):
    """A projection to keys or values that returns the trained ones for virtual tokens.

    Args:
        part: index of its part of `PromptedEmbedding.prefix`: 2 l for the keys of layer l, 2 l + 1 for its values.
    """

    def __init__(self, base_layer: nn.Linear, embedding: PromptedEmbedding, part: int):
        super().__init__()
        self.base_layer, self.part = base_layer, part
        self._embedding = [embedding]  # in a list, so that it is not a submodule

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTF = self.base_layer(x_BTD)
        prefix = self._embedding[0].prefix
        assert prefix is not None, "the embedding runs before the blocks"
        positions, trained = prefix
        size = y_BTF.shape[-1]
        return y_BTF.index_put(positions, trained[:, self.part * size : (self.part + 1) * size].to(y_BTF.dtype))


def add_prompts(model: Transformer, kind: str, count: int) -> None:
    """Adds `count` virtual tokens to a model, with the encoders of peft.

    Args:
        kind: prompt_tuning, p_tuning or prefix_tuning.
    """
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
    from peft.tuners.p_tuning.model import PromptEncoder
    from peft.tuners.prefix_tuning.model import PrefixEncoder
    from peft.tuners.prompt_tuning.model import PromptEmbedding

    table = cast(nn.Embedding, model.embedding.token)
    shape: dict[str, Any] = {
        "num_virtual_tokens": count,
        "token_dim": model.config.hidden_size,
        "num_transformer_submodules": 1,
    }
    with torch.device(table.weight.device):
        if kind == "prompt_tuning":
            encoder: nn.Module = PromptEmbedding(PromptTuningConfig(**shape), table)
        elif kind == "p_tuning":
            encoder = PromptEncoder(PromptEncoderConfig(**shape, encoder_hidden_size=model.config.hidden_size))
        else:
            features = model.config.kv_heads * model.config.head_size
            shape |= {"token_dim": features, "num_layers": model.config.num_hidden_layers}
            encoder = PrefixEncoder(PrefixTuningConfig(**shape, encoder_hidden_size=features))
    embedding = PromptedEmbedding(table, encoder, count, kind == "prefix_tuning")
    model.embedding.token = embedding
    if kind == "prefix_tuning":
        for layer, block in enumerate(model.blocks):
            for part, name in enumerate(("key", "value")):
                attention = block.get_submodule("attention")
                setattr(attention, name, PrefixedLinear(getattr(attention, name), embedding, 2 * layer + part))
