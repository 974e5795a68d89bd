"""Learned tokens before a text, for a model that stays as it is: prompt tuning (Lester et al. 2021, arXiv 2104.08691),
P-tuning (Liu et al. 2021, arXiv 2103.10385) and prefix tuning (Li and Liang 2021, arXiv 2101.00190).

In a text the learned tokens have the ids -1, -2, ... The first two methods learn their embeddings; prefix tuning learns
the keys and values that other tokens see of them, in every layer.

Legend: B rows, T time, D width, P learned tokens, F features of keys, and of values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ingot.model.transformer import Transformer


class PromptedEmbedding(nn.Module):
    """A token embedding that knows learned tokens.

    Args:
        base_layer: of the vocabulary.
        prompt_encoder: numbers of learned tokens (P,) to (P, D), or for prefixes to what all layers need of them.
        num_prompts: P.
        is_prefix: whether the encoder gives keys and values; the embeddings of learned tokens are 0 then.
    """

    def __init__(self, base_layer: nn.Embedding, prompt_encoder: nn.Module, num_prompts: int, is_prefix: bool):
        super().__init__()
        self.base_layer, self.prompt_encoder = base_layer, prompt_encoder
        self.num_prompts, self.is_prefix = num_prompts, is_prefix
        self.seen: tuple[Tensor, Tensor] | None = None  # of this forward: places of learned tokens, and what is learned

    @property
    def weight(self) -> nn.Parameter:
        return self.base_layer.weight

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.base_layer(ids_BT.clamp(min=0))
        numbers = torch.arange(self.num_prompts, device=ids_BT.device)
        learned = self.prompt_encoder(numbers)
        places = (ids_BT < 0).nonzero(as_tuple=True)
        which = -1 - ids_BT[places]
        if self.is_prefix:
            self.seen = (places, learned[which])
            return x_BTD.index_put(places, torch.zeros((), dtype=x_BTD.dtype, device=x_BTD.device))
        return x_BTD.index_put(places, learned[which].to(x_BTD.dtype))


class PrefixedLinear(nn.Module):
    """A projection to keys or values, whose results at learned tokens are learned.

    Args:
        number: of its part of what the embedding has: 2 l for the keys of layer l, 2 l + 1 for its values.
    """

    def __init__(self, base_layer: nn.Linear, embedding: PromptedEmbedding, number: int):
        super().__init__()
        self.base_layer, self.number = base_layer, number
        self._embedding = [embedding]  # in a list, so that it is no submodule here

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTF = self.base_layer(x_BTD)
        places, learned = self._embedding[0].seen
        size = y_BTF.shape[-1]
        return y_BTF.index_put(places, learned[:, self.number * size : (self.number + 1) * size].to(y_BTF.dtype))


def add_prompts(model: Transformer, kind: str, count: int) -> None:
    """Lets a model learn `count` tokens by `kind`: prompt_tuning, p_tuning or prefix_tuning, with the encoders of
    peft."""
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
    from peft.tuners.p_tuning.model import PromptEncoder
    from peft.tuners.prefix_tuning.model import PrefixEncoder
    from peft.tuners.prompt_tuning.model import PromptEmbedding

    table = model.embedding.token
    shape = {"num_virtual_tokens": count, "token_dim": model.config.hidden_size, "num_transformer_submodules": 1}
    with torch.device(table.weight.device):
        if kind == "prompt_tuning":
            encoder: nn.Module = PromptEmbedding(PromptTuningConfig(**shape), table)
        elif kind == "p_tuning":
            encoder = PromptEncoder(PromptEncoderConfig(**shape, encoder_hidden_size=model.config.hidden_size))
        else:
            features = model.config.kv_heads * model.config.head_size
            shape |= {"token_dim": features, "num_hidden_layers": model.config.num_hidden_layers}
            encoder = PrefixEncoder(PrefixTuningConfig(**shape, encoder_hidden_size=features))
    model.embedding.token = PromptedEmbedding(table, encoder, count, kind == "prefix_tuning")
    if kind == "prefix_tuning":
        for layer, block in enumerate(model.blocks):
            for part, name in enumerate(("key", "value")):
                base = getattr(block.attention, name)
                setattr(block.attention, name, PrefixedLinear(base, model.embedding.token, 2 * layer + part))
