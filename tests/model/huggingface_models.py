"""Tiny random models of the transformers library, the configurations that ours must have for them, and comparisons."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ingot.model.config import ModelConfig
from ingot.model.finetuning.task_model import TaskModel
from ingot.model.huggingface.families.registry import FAMILIES
from ingot.model.huggingface.load import load
from ingot.model.initialization import initialize
from ingot.model.transformer import LanguageModel

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

LENGTH, VOCABULARY, WINDOW = 72, 91, 9
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Example:
    """A tiny model of a family: its settings in transformers, and its ModelConfig.

    The ModelConfig is written by hand, so that the reading of settings is tested too.
    """

    settings: dict[str, Any]
    config: ModelConfig
    pad: int = 0


_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
}
_GPT2_SHAPE = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 32, "n_layer": 4, "n_head": 4}
_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
_NO_IDS = {**_IDS, "cls_token_id": None, "sep_token_id": None}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
_GROUPED = {**_SHAPE, **_IDS, **_ROPE, "num_key_value_heads": 2}
_SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW + 1, "max_window_layers": 2}
_BASES = {"full_attention": 700.0, "sliding_attention": 200.0}
_LOCAL = {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in _BASES.items()}}
_LOCAL |= {"local_attention": 2 * WINDOW}

_BERT = {**_SHAPE, "causal": False, "norm_placement": "post", "norm_eps": 1e-12, "activation": "gelu"}
_BERT |= {"type_vocab_size": 2, "embedding_norm": True, "head_transform": True, "head_bias": True}
_ROBERTA = {**_BERT, "norm_eps": 1e-5, "type_vocab_size": 1, "position_offset": 2}
_MODERNBERT = {**_BERT, "norm_placement": "pre", "norm_eps": 1e-5, "type_vocab_size": 0, "positions": "rotary"}
_MODERNBERT |= {"rope_theta": 700.0, "local_rope_theta": 200.0, "layer_pattern": "GLL", "sliding_window": WINDOW}
_MODERNBERT |= {"gated_mlp": True, "bias": False, "first_norm": False}
_LLAMA = {**_SHAPE, "num_key_value_heads": 2, "positions": "rotary", "rope_theta": 500.0, "norm": "rmsnorm"}
_LLAMA |= {"norm_eps": 1e-6, "activation": "silu", "gated_mlp": True, "bias": False, "tie_word_embeddings": False}
_QWEN = {**_LLAMA, "layer_pattern": "GGLL", "sliding_window": WINDOW + 1}

_ROBERTA_SETTINGS = {"max_position_embeddings": LENGTH + 2, "layer_norm_eps": 1e-5, "type_vocab_size": 1}
EXAMPLES = {
    "gpt2": Example({**_GPT2_SHAPE, **_IDS}, ModelConfig(**{**_SHAPE, "intermediate_size": None})),
    "llama": Example(
        {**_GROUPED, "head_dim": 16, "rms_norm_eps": 1e-5}, ModelConfig(**{**_LLAMA, "norm_eps": 1e-5, "head_dim": 16})
    ),
    "qwen2": Example({**_GROUPED, **_SLIDING}, ModelConfig(**_QWEN, qkv_bias=True)),
    "qwen3": Example({**_GROUPED, **_SLIDING, "head_dim": 16}, ModelConfig(**_QWEN, head_dim=16, qk_norm=True)),
    "bert": Example(_SHAPE, ModelConfig(**_BERT)),
    "roberta": Example({**_SHAPE, **_ROBERTA_SETTINGS}, ModelConfig(**_ROBERTA), pad=1),
    "modernbert": Example({**_SHAPE, **_NO_IDS, **_LOCAL}, ModelConfig(**_MODERNBERT)),
}
"""One for each family: a new family needs one line here to go through all tests of `tests/model/huggingface`."""

OURS = {family: example.config for family, example in EXAMPLES.items()}
CAUSAL = tuple(family for family, config in OURS.items() if config.causal)
LANGUAGE = {family: FAMILIES[family].heads["language"].architecture for family in EXAMPLES}
NAMES = {family: FAMILIES[family].heads["features"].architecture.removesuffix("Model") for family in EXAMPLES}
"""The first parts of the names of classes in transformers."""


def theirs(family: str, architecture: str | None = None, **changes) -> nn.Module:
    """A random model of theirs."""
    config = getattr(transformers, f"{NAMES[family]}Config")(**{**EXAMPLES[family].settings, **changes})
    return randomised(getattr(transformers, architecture or LANGUAGE[family])(config))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """All parameters random; initial biases of 0 and norms of 1 would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(mean + 0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def imported(model: nn.Module, folder: Path, *arguments, **options) -> LanguageModel | TaskModel:
    """A model of theirs, saved by them and loaded by us."""
    model.save_pretrained(folder)
    return load(folder, *arguments, **options)


def made(config: ModelConfig, task=None) -> LanguageModel | TaskModel:
    """A random model of ours."""
    model = LanguageModel(config) if task is None else TaskModel(config, task)
    initialize(model, seed=0)
    return randomised(model, seed=3)


def opened(folder: Path, auto: str, **options) -> nn.Module:
    """A folder as transformers opens it, which must find it complete."""
    model, info = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


def auto_of(family: str) -> str:
    return "AutoModelForCausalLM" if family in CAUSAL else "AutoModelForMaskedLM"


def ids_of(batch: int, length: int, seed: int = 1) -> Tensor:
    """Random token ids, none of which is special."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def types_of(family: str, ids_BT: Tensor) -> Tensor | None:
    """Random token types for a model that has some."""
    if OURS[family].type_vocab_size < 2:
        return None
    return torch.randint(0, 2, ids_BT.shape, generator=torch.Generator().manual_seed(2))


def run_theirs(model: nn.Module, ids_BT: Tensor, types_BT: Tensor | None = None, **options) -> Tensor:
    if types_BT is not None:
        options["token_type_ids"] = types_BT
    with torch.no_grad():
        out = model(ids_BT, **options)
    if "start_logits" in out:
        return torch.stack((out.start_logits, out.end_logits), dim=-1)
    return out[0]


def run_ours(model: nn.Module, ids_BT: Tensor, types_BT: Tensor | None = None, **options) -> Tensor:
    with torch.no_grad():
        return model(ids_BT, token_types_BT=types_BT, **options)


def difference(got: Tensor, expected: Tensor) -> float:
    """The larger one of the absolute difference and that relative to the largest value."""
    assert got.shape == expected.shape
    assert expected.std() > 0.05, "values near 0 would make every comparison pass"
    largest = float((got - expected).detach().abs().max())
    return max(largest, largest / float(expected.abs().max()))


def agree(mine: nn.Module, other: nn.Module, family: str, case: str) -> float:
    """The difference of our model and theirs in one of `CASES`."""
    ids_BT = ids_of(2, LENGTH)
    types_BT = types_of(family, ids_BT)
    if case == "plain":
        return difference(run_ours(mine, ids_BT, types_BT), run_theirs(other, ids_BT, types_BT))
    if case == "packed":
        lengths = [19, LENGTH - 19, 40, LENGTH - 40]
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        got = run_ours(mine, ids_BT, types_BT, cu_seqlens=ends).flatten(0, 1)
        flat_N = ids_BT.flatten()
        flat_types_N = [None] * len(flat_N) if types_BT is None else types_BT.flatten()
        documents = [slice(*pair) for pair in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
        each = [
            run_theirs(other, flat_N[d][None], None if types_BT is None else flat_types_N[d][None])[0]
            for d in documents
        ]
        return difference(got, torch.cat(each))
    mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    mask_BT[1, slice(0, 23) if case == "left" else slice(LENGTH - 23, None)] = False
    ids_BT = ids_BT.masked_fill(~mask_BT, EXAMPLES[family].pad)
    options = {"attention_mask": mask_BT.long()}
    if case == "left":
        options["position_ids"] = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    got = run_ours(mine, ids_BT, types_BT, attention_mask_BS=mask_BT)
    return difference(got[mask_BT], run_theirs(other, ids_BT, types_BT, **options)[mask_BT])


CASES = ("plain", "right", "left", "packed")
FAMILY_CASES = [(family, case) for family in EXAMPLES for case in CASES if case != "left" or family in CAUSAL]
