"""The transformer: embeddings, blocks and a final norm, and the language model that puts a head on them.

Legend: B batch, T time (of new tokens), S time (of keys), D hidden size, H query heads, K key and value heads, E head
dim, V vocabulary, N flattened tokens (B * T).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from ingot.model.attention.attention import AttentionLayout, attention, default_positions, prepare_layout
from ingot.model.attention.backends import Backend
from ingot.model.attention.kv_cache import KeyValueCache, LayerCache
from ingot.model.config import ModelConfig
from ingot.model.cross_entropy import IGNORED
from ingot.model.heads import LanguageModelHead, PairHead
from ingot.model.layers import MLP, make_norm
from ingot.model.rotary import Rotation, rotate, rotation_of


class Embedding(nn.Module):
    """The sum of token, position and token type embeddings, then norm and dropout where configured."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.token: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)  # or one with soft prompts
        self.position_offset = config.position_offset
        rows = config.max_position_embeddings + config.position_offset
        self.position = nn.Embedding(rows, config.hidden_size) if config.positions == "learned" else None
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size) if config.type_vocab_size else None
        self.norm = make_norm(config, config.hidden_size) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids_BT: Tensor, positions_BT: Tensor, token_types_BT: Tensor | None) -> Tensor:
        x_BTD = self.token(input_ids_BT)
        if self.position is not None:
            x_BTD = x_BTD + self.position(positions_BT + self.position_offset)
        if self.token_type is not None:
            # Without types all tokens have type 0, as in BERT. One row is then enough: it is broadcast.
            x_BTD = x_BTD + self.token_type(input_ids_BT.new_zeros(1, 1) if token_types_BT is None else token_types_BT)
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        return self.dropout(x_BTD)


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate query, key and value projections."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_size, bias = config.head_size, config.has_bias("qkv")
        self.query = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_size, bias=bias)
        self.key = nn.Linear(config.hidden_size, config.kv_heads * config.head_size, bias=bias)
        self.value = nn.Linear(config.hidden_size, config.kv_heads * config.head_size, bias=bias)
        self.query_norm = make_norm(config, config.head_size) if config.qk_norm else None
        self.key_norm = make_norm(config, config.head_size) if config.qk_norm else None
        self.output = nn.Linear(
            config.num_attention_heads * config.head_size, config.hidden_size, bias=config.has_bias("output")
        )
        self.dropout = config.attention_dropout

    def forward(
        self, x_BTD: Tensor, layout: AttentionLayout, rotation: Rotation | None, cache: LayerCache | None = None
    ) -> Tensor:
        # The number of heads is read from the outputs: under tensor parallelism a projection has only some heads.
        q_BTHE = self.query(x_BTD).unflatten(-1, (-1, self.head_size))
        k_BSKE = self.key(x_BTD).unflatten(-1, (-1, self.head_size))
        v_BSKE = self.value(x_BTD).unflatten(-1, (-1, self.head_size))
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHE, k_BSKE = self.query_norm(q_BTHE), self.key_norm(k_BSKE)
        if rotation is not None:
            q_BTHE, k_BSKE = rotate(q_BTHE, rotation), rotate(k_BSKE, rotation)
        if cache is not None:
            k_BSKE, v_BSKE = cache.append(k_BSKE, v_BSKE)
        out_BTHE = attention(q_BTHE, k_BSKE, v_BSKE, layout, self.dropout if self.training else 0.0)
        return self.output(out_BTHE.flatten(-2))


class Block(nn.Module):
    """One layer: attention and MLP, each a residual branch with a norm before it ("pre") or after the sum ("post")."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.local = config.is_local(layer)
        has_norm = config.first_norm or layer > 0
        self.attention_norm = make_norm(config, config.hidden_size) if has_norm else nn.Identity()
        self.attention = SelfAttention(config)
        self.mlp_norm = make_norm(config, config.hidden_size)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)
        self.norm_first = config.norm_placement == "pre"

    def forward(
        self, x_BTD: Tensor, layout: AttentionLayout, rotation: Rotation | None, cache: LayerCache | None = None
    ) -> Tensor:
        if self.norm_first:
            x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), layout, rotation, cache))
            return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, layout, rotation, cache)))
        return self.mlp_norm(x_BTD + self.dropout(self.mlp(x_BTD)))


class Transformer(nn.Module):
    """Embeddings, blocks and (pre-norm) a final norm: token ids to hidden states.

    Attributes:
        attention_backend: the back-end of all layers; None for the fastest of each layout. `use_implementation` in
            attention_implementation.py sets it.

    Raises:
        ValueError: from `ModelConfig.validate`, with all problems.
    """

    attention_backend: Backend | None = None

    def __init__(self, config: ModelConfig):
        super().__init__()
        config.validate()
        self.config = config
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.final_norm = make_norm(config, config.hidden_size) if config.norm_placement == "pre" else None

    def hidden_states(
        self,
        input_ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        token_types_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        attention_mask_BS: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of token ids (B, T).

        Args:
            positions_BT: position of each token in its document. None: counted from the start of each document, or
                from the first token that is not padding.
            cu_seqlens: int32 (documents + 1,), boundaries of the documents in the flattened B * T tokens. Every row
                starts a document, and no token sees another document. None: each row is one document. To hide
                padding, make it a document of its own.
            token_types_BT: token types. None: all 0.
            cache: keys and values of the tokens before these. Those of the new tokens are appended.
            attention_mask_BS: bool, False for padding, on either side. No token sees padding. S counts the cached and
                the new tokens. The output at padding has no meaning. Not together with `cu_seqlens`.

        Raises:
            ValueError: more tokens than learned positions (with `positions_BT` or `cu_seqlens` the caller must check),
                or token types for a model without type embeddings.
        """
        config = self.config
        (batch, length), past = input_ids_BT.shape, cache.length if cache is not None else 0
        blocks = cast("list[Block]", list(self.blocks))
        counted = cu_seqlens is None and positions_BT is None
        if config.positions == "learned" and counted and past + length > config.max_position_embeddings:
            raise ValueError(
                f"a sequence of {past + length} tokens is longer than the {config.max_position_embeddings} learned "
                f"positions of the model; shorten it to {config.max_position_embeddings} tokens, or train a model with "
                "a larger max_position_embeddings"
            )
        if token_types_BT is not None and not config.type_vocab_size:
            raise ValueError(
                "the model has no token type embeddings; leave token_types_BT out, or set type_vocab_size to 2"
            )

        if positions_BT is None:
            positions_BT = default_positions(batch, length, cu_seqlens, input_ids_BT.device, past, attention_mask_BS)
        x_BTD = self.embedding(input_ids_BT, positions_BT, token_types_BT)
        kinds = {block.local for block in blocks}
        layouts = {
            local: prepare_layout(
                batch,
                length,
                config.causal,
                cu_seqlens,
                input_ids_BT.device,
                past=past,
                window=config.window if local else None,
                mask_BS=attention_mask_BS,
                dtype=x_BTD.dtype,
                head_size=config.head_size,
                dropout=config.attention_dropout if self.training else 0.0,
                backend=self.attention_backend,
            )
            for local in kinds
        }
        rotations = {local: self.rotation(positions_BT, local, x_BTD.dtype) for local in kinds}
        for i, block in enumerate(blocks):
            layer_cache = cache.layers[i] if cache is not None else None
            x_BTD = block(x_BTD, layouts[block.local], rotations[block.local], layer_cache)
        return x_BTD if self.final_norm is None else self.final_norm(x_BTD)

    def rotation(self, positions_BT: Tensor, local: bool, dtype: torch.dtype) -> Rotation | None:
        """The rotation of queries and keys at these positions, in local or global layers; None without rotary
        positions."""
        config = self.config
        if config.positions != "rotary":
            return None
        base = config.local_rope_theta if local and config.local_rope_theta is not None else config.rope_theta
        return rotation_of(positions_BT, config.head_size, base, dtype, config.rope_scaling)

    def forward(
        self,
        input_ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        token_types_BT: Tensor | None = None,
        attention_mask_BS: Tensor | None = None,
    ) -> Tensor:
        """`hidden_states`."""
        return self.hidden_states(
            input_ids_BT, positions_BT, cu_seqlens, token_types_BT, attention_mask_BS=attention_mask_BS
        )


class LanguageModel(Transformer):
    """A transformer with a language-model head: GPT if causal, else BERT's masked language model.

    The parameters have the first values of torch's layers until `initialize` (model/initialization.py) sets them. Make
    a large model under `torch.device("meta")`, call `to_empty`, and then `initialize`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.head = LanguageModelHead(config)
        self.pair_head = PairHead(config) if config.pair_head else None
        self.tie_weights()

    def tie_weights(self) -> None:
        """Makes the matrix of the head and the token embedding one parameter again, where configured."""
        if self.config.tie_word_embeddings:
            self.head.weight = cast(nn.Parameter, self.embedding.token.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LanguageModel:
        # `to_empty` makes a new parameter for each name, so the head would no longer share the embedding.
        super()._apply(fn, recurse)
        self.tie_weights()
        return self

    def forward(  # type: ignore[override]  # torch.nn.Module lets each module have its own forward
        self,
        input_ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        labels_BT: Tensor | None = None,
        token_types_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
        pair_labels_B: Tensor | None = None,
        pair_weight: float = 1.0,
        attention_mask_BS: Tensor | None = None,
        z_loss: float = 0.0,
        label_smoothing: float = 0.0,
        target_rows: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V), or, with labels, the loss.

        Args:
            labels_BT: labels_BT[b, t] is the target of position t (of a causal model the next token: the caller shifts
                the labels), or -100 for no target.
            positions_BT, cu_seqlens, token_types_BT, cache, attention_mask_BS: as in `hidden_states`.
            pair_labels_B: class of the sentence pair of each row, 0 or 1, or -100 for none. Only for a model with a
                pair head.
            pair_weight: factor of the losses of the pairs. With (targets of the step) / (pairs of the step) the result,
                divided by the targets, is the sum of the two means, as in BERT.
            z_loss, label_smoothing: as in `linear_cross_entropy` (model/loss.py).
            target_rows: int64 (targets,), the positions of the labels other than -100 in the flattened B * T labels, in
                order. Whoever has the labels on the host should pass it: without it the host waits for a GPU in masked
                language modelling, and next-token prediction computes rows without a target too.

        Returns:
            Without labels: the logits in the dtype of the model. With labels: the **sum** of the cross-entropies of the
            targets, a fp32 scalar. Divide it by the number of targets of the whole step. Without any target the loss
            and its gradients are 0.
        """
        hidden_BTD = self.hidden_states(
            input_ids_BT, positions_BT, cu_seqlens, token_types_BT, cache, attention_mask_BS
        )
        if labels_BT is None:
            return self.head(hidden_BTD)
        if target_rows is None and not self.config.causal:
            # About one token in seven is a target, so the head should not compute the other rows.
            target_rows = (labels_BT.flatten() != IGNORED).nonzero()[:, 0]
        loss = self.head(hidden_BTD, labels_BT, target_rows=target_rows, z_loss=z_loss, label_smoothing=label_smoothing)
        if pair_labels_B is not None:
            assert self.pair_head is not None, "pair labels for a model without a pair head"
            loss = loss + pair_weight * self.pair_head(hidden_BTD[:, 0], pair_labels_B)
        return loss
