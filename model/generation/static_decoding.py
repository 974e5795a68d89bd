"""One token for each row with tensors of fixed shapes, so that one compiled graph, or CUDA graph, serves all tokens.

The plain way gives attention the keys so far: another shape for each token. Here it is given a cache of fixed length
and a mask. The length is a multiple of `BUCKET`, so different prompts share the graph too. It computes more: a short
text in a long cache pays for the whole cache. What it saves is the time in which the host starts hundreds of small
kernels, most of the time of a small batch on a GPU.

Legend: B rows, S length of the cache, K key and value heads, E head dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ingot.model.attention.attention import AttentionLayout
from ingot.model.attention.kv_cache import KeyValueCache, LayerCache
from ingot.model.attention.masks import seen_at
from ingot.model.config import ModelConfig
from ingot.model.transformer import Block, LanguageModel

BUCKET = 256
BACKEND: Any = "inductor"


def problems(config: ModelConfig) -> list[str]:
    """Why a model cannot be decoded so; empty if it can."""
    scaling = config.rope_scaling
    if scaling is not None and scaling.rope_type in ("dynamic", "longrope"):
        return [
            f"rope_scaling {scaling.rope_type} depends on the number of tokens so far, which a compiled graph does not "
            "know; set compile to false"
        ]
    return []


def bucket(tokens: int) -> int:
    """The length of a cache for so many tokens."""
    return -(-tokens // BUCKET) * BUCKET


class _FixedCache:
    """Stands for the `LayerCache` of a block: it writes at a slot that is known on the device only."""

    def __init__(self, k_BSKE: Tensor, v_BSKE: Tensor, slot_1: Tensor):
        self.k_BSKE, self.v_BSKE, self.slot_1 = k_BSKE, v_BSKE, slot_1

    def append(self, k_B1KE: Tensor, v_B1KE: Tensor) -> tuple[Tensor, Tensor]:
        self.k_BSKE.index_copy_(1, self.slot_1, k_B1KE)
        self.v_BSKE.index_copy_(1, self.slot_1, v_B1KE)
        return self.k_BSKE, self.v_BSKE


class StaticDecoder:
    """Decodes from a cache of fixed length, whose memory stays at the same place, as a CUDA graph needs it.

    Args:
        length: S, a `bucket`.
        backend: of torch.compile.
    """

    def __init__(self, model: LanguageModel, batch: int, length: int, backend: Any = "inductor"):
        self.shape = (batch, length, backend)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._is_token_BS = torch.ones(batch, length, dtype=torch.bool, device=model.head.weight.device)
        self._step = _compiled(backend, self._is_token_BS.device.type)

    def load(self, cache: KeyValueCache, is_token_BS: Tensor) -> None:
        """Takes the keys and values of prompts over.

        Args:
            is_token_BS: bool, False for padding before a prompt; of the tokens in the cache, or more.
        """
        seen = [layer.seen() for layer in cache.layers]
        if not self._keys:
            for of_prompt, mine in ((0, self._keys), (1, self._values)):
                for layer in seen:
                    shape = (*self.shape[:2], *layer[of_prompt].shape[2:])
                    mine.append(layer[of_prompt].new_zeros(shape))  # what is hidden must be finite: 0 x NaN is NaN
                    torch._dynamo.mark_static_address(mine[-1])
        for (k_BSKE, v_BSKE), mine_k, mine_v in zip(seen, self._keys, self._values, strict=True):
            mine_k[:, : cache.length] = k_BSKE
            mine_v[:, : cache.length] = v_BSKE
        self._is_token_BS.fill_(True)
        self._is_token_BS[:, : is_token_BS.shape[1]] = is_token_BS

    @torch.no_grad()
    def __call__(self, model: LanguageModel, ids_B1: Tensor, positions_B1: Tensor, slot_1: Tensor) -> Tensor:
        """fp32 logits (B, V) after the tokens that are put at a slot of the cache.

        Args:
            slot_1: int64 (1,), on the device.
        """
        inputs = [x.clone(memory_format=torch.contiguous_format) for x in (ids_B1, positions_B1, slot_1)]
        logits_BV = self._step(model, *inputs, self._is_token_BS, self._keys, self._values)
        return logits_BV.clone()  # a CUDA graph writes the next result at the same place


_DECODERS: WeakKeyDictionary[LanguageModel, StaticDecoder] = WeakKeyDictionary()


def decoder_of(model: LanguageModel, batch: int, tokens: int) -> StaticDecoder:
    """A decoder for so many rows and tokens; the last one of a model is used again if it fits exactly."""
    decoder, length = _DECODERS.get(model), bucket(tokens)
    if decoder is None or decoder.shape != (batch, length, BACKEND):
        decoder = _DECODERS[model] = StaticDecoder(model, batch, length, BACKEND)
    return decoder


_COMPILED: dict[tuple[Any, str], Callable[..., Tensor]] = {}


def _compiled(backend: Any, device: str) -> Callable[..., Tensor]:
    if (backend, device) not in _COMPILED:
        # On a GPU as a CUDA graph.
        mode = "reduce-overhead" if device == "cuda" and backend == "inductor" else None
        _COMPILED[backend, device] = torch.compile(_decode, backend=backend, fullgraph=True, dynamic=False, mode=mode)
    return _COMPILED[backend, device]


def _decode(
    model: LanguageModel,
    ids_B1: Tensor,
    positions_B1: Tensor,
    slot_1: Tensor,
    is_token_BS: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
) -> Tensor:
    config = model.config
    back_1S = slot_1[:, None] - torch.arange(is_token_BS.shape[1], device=ids_B1.device)
    x_B1D = model.embedding(ids_B1, positions_B1, None)
    layouts, rotations = {}, {}
    for local in sorted({config.is_local(layer) for layer in range(config.num_hidden_layers)}):
        seen_BS = seen_at(back_1S, causal=True, window=config.window if local else None) & is_token_BS
        layouts[local] = AttentionLayout("sdpa", is_causal=False, mask=seen_BS[:, None, None])
        rotations[local] = model.rotation(positions_B1, local, x_B1D.dtype)
    for layer, module in enumerate(model.blocks):
        block, local = cast("Block", module), config.is_local(layer)
        cache = cast("LayerCache", _FixedCache(keys[layer], values[layer], slot_1))
        x_B1D = block(x_B1D, layouts[local], rotations[local], cache)
    if model.final_norm is not None:
        x_B1D = model.final_norm(x_B1D)
    return model.head(x_B1D[:, -1]).float()
