"""The configuration of a model: one dataclass that describes GPT, BERT and their modern variants.

This file does not import torch, so that a command line can show its help fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from types import UnionType
from typing import Literal, get_args, get_origin, get_type_hints

Positions = Literal["learned", "rotary"]
Norm = Literal["layernorm", "rmsnorm"]
NormPlacement = Literal["pre", "post"]
Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu_squared"]
BiasGroup = Literal["qkv", "output", "mlp", "norm"]
BIAS_GROUPS: tuple[BiasGroup, ...] = get_args(BiasGroup)
Scaling = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass
class RopeScaling:
    """How rotary positions are scaled beyond the training length (model/rotary.py has the formulas).

    Attributes:
        rope_type: "linear" (position interpolation, arXiv 2306.15595), "dynamic" (the base grows with the
            length of the sequence), "llama3", "yarn" (arXiv 2309.00071), or "longrope" (arXiv 2402.13753).
        factor: Factor by which the length is scaled.
        original_max_position_embeddings: Length of the original training. For llama3, yarn, longrope and dynamic.
        low_freq_factor: For llama3: wavelengths above original_max_position_embeddings / low_freq_factor are scaled by
            the whole factor.
        high_freq_factor: For llama3: wavelengths below original_max_position_embeddings / high_freq_factor are not
            scaled.
        beta_fast: For yarn: frequencies with more rotations over the original length are not scaled.
        beta_slow: For yarn: frequencies with fewer rotations over the original length are scaled by the whole factor.
        truncate: For yarn: whether the two limits are rounded outwards to whole frequencies.
        attention_factor: For yarn and longrope: factor of cosines and sines. Null takes the one of the paper.
        short_factor: For longrope: divisor of each frequency up to the original length; head_dim / 2 numbers.
        long_factor: For longrope: the same for longer sequences.
    """

    rope_type: Scaling = "linear"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    short_factor: list[float] | None = None
    long_factor: list[float] | None = None


@dataclass
class ModelConfig:
    """Shape and architecture of a transformer. The defaults are a small GPT-2.

    Attributes:
        vocab_size: Number of token ids: the rows of the token embedding and of the head.
        num_hidden_layers: Number of transformer blocks.
        num_attention_heads: Number of attention (query) heads.
        num_key_value_heads: Number of key and value heads. Each is shared by num_attention_heads / num_key_value_heads
            query heads (grouped-query attention, arXiv 2305.13245). Null means num_attention_heads, which is plain
            multi-head attention.
        head_dim: Size of one head. Null means hidden_size / num_attention_heads.
        hidden_size: Size of the hidden state.
        intermediate_size: Size of the hidden layer of the MLP. Null means 4 * hidden_size.
        max_position_embeddings: Longest sequence. If positions are learned, the rows of the position table. Rotary
            positions have no table; then it is the length that the model is trained for.
        position_offset: Index of the first learned position: 2 for RoBERTa, whose table has two more rows.
        causal: True: each token sees only the tokens before it and itself (GPT). False: it sees all tokens (BERT).
        positions: "learned" adds a position embedding. "rotary" rotates queries and keys (arXiv 2104.09864,
            half-split).
        rope_theta: Base of the rotary wavelengths. No effect if positions are learned.
        local_rope_theta: The same for local layers (ModernBERT). Null means rope_theta.
        rope_scaling: How rotary positions are scaled. Null means no scaling.
        layer_pattern: One letter for each layer, "G" (global attention) or "L" (local attention), repeated from the
            first layer on: "GLL" is ModernBERT's pattern.
        sliding_window: Number of tokens that a token of a local layer sees, counted as in `transformers`. In a causal
            model it includes the token itself (Mistral). In a bidirectional model it is the number of tokens on each
            side, without the token itself (ModernBERT). Required if layer_pattern has an "L".
        norm: "layernorm", or "rmsnorm" (arXiv 1910.07467).
        norm_placement: "pre" normalises the input of each branch and the output of the last block (GPT-2).
            "post" normalises after each residual sum (BERT).
        norm_eps: Added to the variance or the mean square inside every norm.
        activation: "gelu" (exact, BERT), "gelu_tanh" (GPT-2's approximation), "silu", "relu", or "relu_squared".
        gated_mlp: True multiplies the activated "gate" projection by an "up" projection (SwiGLU and similar
            functions, arXiv 2002.05202); this adds a third matrix of hidden_size * intermediate_size.
        bias: True gives linear layers and LayerNorms a bias.
        qkv_bias: The same for the query, key and value projections only (Qwen2). Null means the value of bias.
        output_bias: The same for the output projection of attention. Null means the value of bias.
        mlp_bias: The same for the MLP. Null means the value of bias.
        norm_bias: The same for LayerNorms. Null means the value of bias.
        first_norm: False leaves out the norm before the first attention (ModernBERT, which normalises the embedding).
        qk_norm: True normalises the queries and keys of each head before the rotation (Qwen3).
        type_vocab_size: Number of token type (segment) embeddings: 2 for BERT, 0 for none.
        embedding_norm: True normalises the sum of the embeddings (BERT).
        tie_word_embeddings: True makes the matrix of the head and the token embedding the same parameter.
        head_transform: True puts BERT's dense layer, activation and norm before the matrix of the head.
        head_bias: True gives the head a bias of vocab_size.
        final_logit_softcapping: Bounds the logits: cap * tanh(logits / cap) (arXiv 2408.00118). Null means no bound.
        pair_head: True adds BERT's pooler and its classifier of sentence pairs, with two classes (next sentence, or
            sentence order).
        dropout: Probability of zeroing an element of the embeddings and of the output of each branch, in training.
        attention_dropout: Probability of zeroing an attention weight, in training.
        initializer_range: Standard deviation of the normal from which matrices and embeddings are drawn.
        residual_scaled_init: True divides initializer_range by sqrt(2 * num_hidden_layers) for the two matrices of a
            block that write to the residual stream (GPT-2).
    """

    vocab_size: int = 8192
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_size: int = 256
    intermediate_size: int | None = None
    max_position_embeddings: int = 1024
    causal: bool = True
    positions: Positions = "learned"
    position_offset: int = 0
    rope_theta: float = 10000.0
    local_rope_theta: float | None = None
    rope_scaling: RopeScaling | None = None
    layer_pattern: str = "G"
    sliding_window: int | None = None
    norm: Norm = "layernorm"
    norm_placement: NormPlacement = "pre"
    norm_eps: float = 1e-5
    activation: Activation = "gelu_tanh"
    gated_mlp: bool = False
    bias: bool = True
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = None
    norm_bias: bool | None = None
    first_norm: bool = True
    qk_norm: bool = False
    type_vocab_size: int = 0
    embedding_norm: bool = False
    tie_word_embeddings: bool = True
    head_transform: bool = False
    head_bias: bool = False
    final_logit_softcapping: float | None = None
    pair_head: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    residual_scaled_init: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.rope_scaling, dict):  # from a file
            self.rope_scaling = RopeScaling(**self.rope_scaling)

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, `num_key_value_heads` or its default."""
        return self.num_attention_heads if self.num_key_value_heads is None else self.num_key_value_heads

    @property
    def head_size(self) -> int:
        """Size of one head, `head_dim` or its default."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @property
    def mlp_size(self) -> int:
        """Size of the MLP's hidden layer, `intermediate_size` or its default."""
        return 4 * self.hidden_size if self.intermediate_size is None else self.intermediate_size

    def has_bias(self, group: BiasGroup) -> bool:
        """Whether a group of layers has a bias: `<group>_bias` or its default."""
        own = getattr(self, f"{group}_bias")
        return self.bias if own is None else own

    @property
    def window(self) -> int | None:
        """Number of neighbours, without itself, that a token of a local layer sees on each side that it may see."""
        return self.sliding_window - 1 if self.causal and self.sliding_window is not None else self.sliding_window

    def is_local(self, layer: int) -> bool:
        """Whether a layer has local attention."""
        return self.layer_pattern[layer % len(self.layer_pattern)] == "L"

    def keep_layers(self, layers: Sequence[int]) -> ModelConfig:
        """The configuration of a model that has only some layers of this one, each unchanged.

        Args:
            layers: numbers of layers, from 0, in increasing order.

        Raises:
            ValueError: `layers` is empty, is not increasing, or names a layer that the model does not have.
        """
        numbers = list(layers)
        if not numbers or numbers != sorted({n for n in numbers if 0 <= n < self.num_hidden_layers}):
            raise ValueError(f"layers {numbers} must be increasing numbers from 0 to {self.num_hidden_layers - 1}")
        pattern = "".join("L" if self.is_local(n) else "G" for n in numbers)
        has_first_norm = self.first_norm or numbers[0] > 0
        pattern = pattern if "L" in pattern else "G"
        return replace(self, num_hidden_layers=len(numbers), layer_pattern=pattern, first_norm=has_first_norm)

    def validate(self) -> None:
        """Raises one ValueError that lists every problem, each with its values and a remedy."""
        problems = _problems_of_fields(self)
        if self.rope_scaling is not None:
            problems += [f"rope_scaling.{problem}" for problem in _problems_of_fields(self.rope_scaling)]
        if not problems:  # relations are checked only between values that are valid
            problems = self._problems_between_fields()
        if problems:
            raise ValueError("the model configuration is not consistent:\n" + "\n".join(f"  - {p}" for p in problems))

    def _problems_between_fields(self) -> list[str]:
        problems = []
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            near = _divisors_near(self.hidden_size, self.num_attention_heads)
            problems.append(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}; "
                f"set num_attention_heads to {near}, or set head_dim"
            )
        elif self.positions == "rotary" and self.head_size % 2:
            problems.append(f"rotary positions rotate pairs, and head_dim {self.head_size} is odd; make it even")
        if self.pair_head and self.causal:
            problems.append(
                "pair_head reads the first token of a pair, which sees no other token in a causal model; "
                "set pair_head or causal to false"
            )
        if self.num_attention_heads % self.kv_heads:
            near = _divisors_near(self.num_attention_heads, self.kv_heads)
            problems.append(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.kv_heads}; set num_key_value_heads to {near}"
            )
        if not self.layer_pattern or set(self.layer_pattern) - set("GL"):
            problems.append(f"layer_pattern is {self.layer_pattern!r}; use only the letters G and L")
        elif any(map(self.is_local, range(self.num_hidden_layers))) and self.sliding_window is None:
            problems.append(f"layer_pattern {self.layer_pattern!r} has local layers; set sliding_window")
        if not self.first_norm and self.norm_placement == "post":
            problems.append(
                "first_norm is false, and post-norm blocks have no norm before attention; set first_norm to true"
            )
        if self.rope_scaling is not None:
            problems += self._problems_of_scaling(self.rope_scaling)
        return problems

    def _problems_of_scaling(self, scaling: RopeScaling) -> list[str]:
        problems = []
        if self.positions != "rotary":
            problems.append(
                f"rope_scaling needs rotary positions, and positions is {self.positions!r}; set it to rotary"
            )
        if scaling.rope_type != "linear" and scaling.original_max_position_embeddings is None:
            problems.append(f"rope_scaling of type {scaling.rope_type} needs original_max_position_embeddings")
        if scaling.rope_type == "llama3" and not scaling.low_freq_factor < scaling.high_freq_factor:
            problems.append(
                f"rope_scaling: low_freq_factor {scaling.low_freq_factor} must be below high_freq_factor "
                f"{scaling.high_freq_factor}"
            )
        if scaling.rope_type == "longrope":
            for name in ("short_factor", "long_factor"):
                count = len(getattr(scaling, name) or ())
                if count != self.head_size // 2:
                    problems.append(
                        f"rope_scaling.{name} has {count} numbers; longrope needs {self.head_size // 2}, one for each "
                        "frequency"
                    )
        return problems


_MAY_BE_ZERO = {"type_vocab_size", "position_offset"}
_LARGEST = {"num_hidden_layers": 1000, "num_attention_heads": 10_000, "num_key_value_heads": 10_000}
_LARGEST |= {"vocab_size": 10**8, "max_position_embeddings": 10**9, "sliding_window": 10**9}
_LARGEST |= {"original_max_position_embeddings": 10**9}


def limits_of(name: str, hint: type) -> tuple[float, float, bool, bool]:
    """Limits of a number field: smallest, largest, and for each whether the limit itself is excluded.

    The largest are larger than in any model, but small enough that a check of them does not fill the memory.
    """
    if hint is int:
        return (0 if name in _MAY_BE_ZERO else 1), _LARGEST.get(name, 10**7), False, False
    return (0, 1, False, True) if "dropout" in name else (0, 10**15, True, False)


def _problems_of_fields(config: ModelConfig | RopeScaling) -> list[str]:
    """Problems of single fields of a dataclass."""
    problems = []
    hints = get_type_hints(type(config))
    for field in fields(config):
        name, value, hint = field.name, getattr(config, field.name), hints[field.name]
        if get_origin(hint) is UnionType:
            if value is None:
                continue
            hint = get_args(hint)[0]
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                problems.append(f"{name} is {value!r}; choose one of {', '.join(get_args(hint))}")
        elif hint is bool:
            if not isinstance(value, bool):
                problems.append(f"{name} is {value!r}; it must be true or false")
        elif hint is float:
            problems += _problem_of_float(name, value)
        elif hint is int:
            smallest, largest, _, _ = limits_of(name, int)
            if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
                problems.append(
                    f"{name} is {value!r}; it must be an integer of at least {smallest} and at most {largest}"
                )
    return problems


def _problem_of_float(name: str, value: object) -> list[str]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return [f"{name} is {value!r}; it must be a number"]
    if "dropout" in name:
        return [] if 0 <= value < 1 else [f"{name} is {value}; it must be a probability of at least 0 and below 1"]
    return [] if 0 < value <= 10**15 else [f"{name} is {value}; it must be above 0 and at most 10^15"]


def _divisors_near(number: int, target: int) -> str:
    """The divisors of `number` next to `target`, below and above, for a message: "4 or 8"."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    near = [d for d in divisors if d < target][-1:] + [d for d in divisors if d > target][:1]
    return " or ".join(map(str, near))
