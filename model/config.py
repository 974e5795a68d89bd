"""What a model is: one dataclass that describes GPT, BERT and their modern forms.

This file imports no torch, so a command line can show every option at once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

Positions = Literal["learned", "rotary"]
Norm = Literal["layernorm", "rmsnorm"]
NormPlacement = Literal["pre", "post"]
Activation = Literal["gelu", "gelu_tanh", "silu", "relu_squared"]


@dataclass
class ModelConfig:
    """Shape and make of a transformer. The defaults are a small GPT-2.

    Attributes:
        vocab_size: Number of token ids, rows of the token embedding and of the head.
        num_layers: Number of transformer blocks.
        num_heads: Number of attention (query) heads.
        num_kv_heads: Number of key and value heads, each shared by num_heads / num_kv_heads query heads
            (grouped-query attention, arXiv 2305.13245). Null means num_heads, which is plain multi-head attention.
        head_dim: Size of one head. Null means width / num_heads.
        width: Size of the hidden state.
        mlp_width: Size of the hidden layer of the MLP. Null means 4 * width.
        max_positions: Longest sequence. The rows of the position table when positions are learned; rotary
            positions have no table, there it is the length that the model is trained for.
        causal: True lets each token see the tokens before it only (GPT), false lets it see all (BERT).
        positions: "learned" adds a position embedding, "rotary" turns queries and keys (arXiv 2104.09864, half-split).
        rotary_base: Base of the rotary wavelengths, "theta". Without effect when positions are learned.
        norm: "layernorm", or "rmsnorm" (arXiv 1910.07467).
        norm_placement: "pre" normalises the input of each branch and the output of the last block (GPT-2),
            "post" normalises after each residual sum (BERT).
        norm_eps: Added to the variance or mean square inside every norm.
        activation: "gelu" (exact, BERT), "gelu_tanh" (GPT-2's approximation), "silu", or "relu_squared".
        gated_mlp: True multiplies the activated "gate" projection by an "up" projection (SwiGLU and its
            relatives, arXiv 2002.05202), a third matrix of width * mlp_width.
        bias: True gives linear layers and LayerNorms a bias.
        qk_norm: True normalises each head's queries and keys before the rotary turn (as Qwen3 does).
        token_types: Number of token type (segment) embeddings: 2 for BERT, 0 for none.
        embedding_norm: True normalises the sum of the embeddings (BERT).
        tie_head: True makes the head's matrix and the token embedding the same parameter.
        head_transform: True puts BERT's dense layer, activation and norm before the head's matrix.
        head_bias: True gives the head a bias of vocab_size.
        pair_head: True adds BERT's pooler and its two-way classification of sentence pairs (next sentence, or order).
        dropout: Probability of zeroing an element of the embeddings and of each branch's output, in training.
        attention_dropout: Probability of zeroing an attention weight, in training.
        init_std: Standard deviation of the normal from which matrices and embeddings are drawn.
        residual_scaled_init: True divides init_std by sqrt(2 * num_layers) for the two matrices of a block
            that write to the residual stream (GPT-2).
    """

    vocab_size: int = 8192
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_dim: int | None = None
    width: int = 256
    mlp_width: int | None = None
    max_positions: int = 1024
    causal: bool = True
    positions: Positions = "learned"
    rotary_base: float = 10000.0
    norm: Norm = "layernorm"
    norm_placement: NormPlacement = "pre"
    norm_eps: float = 1e-5
    activation: Activation = "gelu_tanh"
    gated_mlp: bool = False
    bias: bool = True
    qk_norm: bool = False
    token_types: int = 0
    embedding_norm: bool = False
    tie_head: bool = True
    head_transform: bool = False
    head_bias: bool = False
    pair_head: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02
    residual_scaled_init: bool = True

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, `num_kv_heads` or its default."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """Size of one head, `head_dim` or its default."""
        return self.width // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def mlp_size(self) -> int:
        """Size of the MLP's hidden layer, `mlp_width` or its default."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    def validate(self) -> None:
        """Raises one ValueError that lists every problem, each with its values and a remedy."""
        problems = self._problems_of_single_fields()
        if not problems:  # the relations are only worth checking between values that can stand alone
            problems = self._problems_between_fields()
        if problems:
            raise ValueError(
                "the model configuration does not hold together:\n" + "\n".join(f"  - {p}" for p in problems)
            )

    def _problems_of_single_fields(self) -> list[str]:
        problems = []
        hints = get_type_hints(type(self))
        for field in fields(self):
            name, value, hint = field.name, getattr(self, field.name), hints[field.name]
            choices = get_args(hint) if isinstance(field.default, str) else ()
            if choices:
                if value not in choices:
                    problems.append(f"{name} is {value!r}; choose one of {', '.join(choices)}")
            elif hint is bool:
                if not isinstance(value, bool):
                    problems.append(f"{name} is {value!r}; it must be true or false")
            elif hint is float:
                problems += _problem_of_float(name, value)
            elif value is not None or hint is int:
                smallest = 0 if name == "token_types" else 1
                if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                    problems.append(f"{name} is {value!r}; it must be a whole number of at least {smallest}")
        return problems

    def _problems_between_fields(self) -> list[str]:
        problems = []
        if self.head_dim is None and self.width % self.num_heads:
            problems.append(
                f"width {self.width} is no multiple of num_heads {self.num_heads}; "
                f"set num_heads to {_divisors_near(self.width, self.num_heads)}, or set head_dim"
            )
        elif self.positions == "rotary" and self.head_size % 2:
            problems.append(f"rotary positions turn pairs, and the head size {self.head_size} is odd; make it even")
        if self.pair_head and self.causal:
            problems.append(
                "pair_head reads the first token of a pair, which in a causal model sees nothing; turn one off"
            )
        if self.num_heads % self.kv_heads:
            problems.append(
                f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.kv_heads}; "
                f"set num_kv_heads to {_divisors_near(self.num_heads, self.kv_heads)}"
            )
        return problems


def _problem_of_float(name: str, value: object) -> list[str]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return [f"{name} is {value!r}; it must be a number"]
    if "dropout" in name:
        return [] if 0 <= value < 1 else [f"{name} is {value}; a probability of at least 0 and below 1 is needed"]
    return [] if 0 < value < float("inf") else [f"{name} is {value}; it must be a positive number"]


def _divisors_near(number: int, wish: int) -> str:
    """The divisors of `number` next to `wish`, below and above, for a message: "4 or 8"."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    near = [d for d in divisors if d < wish][-1:] + [d for d in divisors if d > wish][:1]
    return " or ".join(map(str, near))
