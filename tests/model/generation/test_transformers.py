"""Token for token what the transformers library generates, one by one and batched."""

import pytest
import torch
from torch import nn

from ingot.model.config import ModelConfig
from ingot.model.generation.generate import Sampling, complete
from ingot.model.transformer import LanguageModel

transformers = pytest.importorskip("transformers")

LENGTH, VOCABULARY, NEW = 192, 91, 128
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
PROMPTS = [[5, 17, 80, 2], [9], [3, 3, 60, 41, 8, 12, 77, 1, 90], [1, 2, 30]]


def gpt2() -> tuple[nn.Module, ModelConfig]:
    shape = {"n_positions": LENGTH, "n_embd": 32, "n_layer": 3, "n_head": 4}
    # Tied, a random model repeats itself.
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **COMMON, tie_word_embeddings=False))
    return theirs, ModelConfig(
        VOCABULARY, 3, 4, hidden_size=32, max_position_embeddings=LENGTH, tie_word_embeddings=False
    )


def gpt2_values(theirs: nn.Module) -> dict[str, torch.Tensor]:
    values, names = {"head.weight": theirs.lm_head.weight}, {"wte": "embedding.token", "wpe": "embedding.position"}
    names |= {"ln_1": "attention_norm", "attn.c_proj": "attention.output", "ln_2": "mlp_norm"}
    names |= {"mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down", "ln_f": "final_norm"}
    for name, value in theirs.transformer.state_dict().items():
        *path, kind = name.split(".")
        block = f"blocks.{path[1]}." if path[0] == "h" else ""
        place = ".".join(path[2:] if block else path)
        value = value.T if "c_" in place and kind == "weight" else value  # their matrices are (in, out)
        if place == "attn.c_attn":
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                values[f"{block}attention.{part}.{kind}"] = piece
        else:
            values[f"{block}{names[place]}.{kind}"] = value
    return values


def llama() -> tuple[nn.Module, ModelConfig]:
    shape = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": LENGTH, "rms_norm_eps": 1e-5}
    rope = {"rope_type": "default", "rope_theta": 500.0}
    config = transformers.LlamaConfig(**shape, **COMMON, rope_parameters=rope, tie_word_embeddings=False)
    return transformers.LlamaForCausalLM(config), ModelConfig(
        VOCABULARY,
        3,
        4,
        num_key_value_heads=2,
        head_dim=16,
        hidden_size=32,
        intermediate_size=80,
        max_position_embeddings=LENGTH,
        positions="rotary",
        rope_theta=500.0,
        norm="rmsnorm",
        activation="silu",
        gated_mlp=True,
        bias=False,
        tie_word_embeddings=False,
    )


def llama_values(theirs: nn.Module) -> dict[str, torch.Tensor]:
    renamed = {"model.embed_tokens": "embedding.token", "model.norm": "final_norm", "lm_head": "head"}
    renamed |= {
        "model.layers": "blocks",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "mlp_norm",
    }
    renamed |= {f"self_attn.{part[0]}_proj": f"attention.{part}" for part in ("query", "key", "value", "output")}
    renamed |= {f"mlp.{part}_proj": f"mlp.{part}" for part in ("gate", "up", "down")}
    values = {}
    for name, value in theirs.state_dict().items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        values[name] = value
    return values


FAMILIES = {"gpt2": (gpt2, gpt2_values), "llama": (llama, llama_values)}


def pair(family: str, seed: int) -> tuple[LanguageModel, nn.Module]:
    """Ours and theirs with equal weights, wide enough that the likeliest token keeps changing."""
    build, values = FAMILIES[family]
    theirs, config = build()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            std = 0.1 if parameter.ndim == 1 else 1.0 if "wte" in name or "wpe" in name else 0.3
            mean = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(mean + std * torch.randn(parameter.shape, generator=generator))
    ours = LanguageModel(config)
    ours.load_state_dict(values(theirs))
    return ours.eval(), theirs.eval()


@torch.no_grad()
def generated(theirs: nn.Module, prompts: list[list[int]], **settings) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = theirs.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW, **settings)
    return out[:, longest:].tolist()


def ours_of(model: LanguageModel, prompts: list[list[int]], **settings) -> list[list[int]]:
    sampling = Sampling(max_tokens=NEW, temperature=0, **settings)
    return [completion.tokens for completion in complete(model, prompts, sampling)]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_greedy_generation_is_that_of_transformers(family, seed):
    ours, theirs = pair(family, seed)
    batched = ours_of(ours, PROMPTS)
    assert batched == generated(theirs, PROMPTS)
    assert batched == [ours_of(ours, [prompt])[0] for prompt in PROMPTS]
    assert batched == [generated(theirs, [prompt])[0] for prompt in PROMPTS]
    for tokens in batched:
        assert len(tokens) == NEW
        assert len(set(tokens)) > 10, "a text that repeats itself would hide mistakes"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_repetition_penalty_is_that_of_transformers(family):
    ours, theirs = pair(family, 0)
    for prompt in PROMPTS:  # one by one: theirs counts padding as written
        tokens = ours_of(ours, [prompt], repetition_penalty=1.4)
        assert tokens == generated(theirs, [prompt], repetition_penalty=1.4)
        assert tokens != ours_of(ours, [prompt])
