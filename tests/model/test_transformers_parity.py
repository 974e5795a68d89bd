"""Logits equal to those of the transformers library, with all weights random (norms and biases as well)."""

import pytest
import torch
from torch import nn

from model.config import ModelConfig
from model.transformer import LanguageModel

transformers = pytest.importorskip("transformers")

LENGTH = 64
TOLERANCE = 1e-5
GPT2 = ModelConfig(vocab_size=91, num_layers=3, num_heads=4, width=32, max_positions=LENGTH)
BERT = ModelConfig(
    vocab_size=91,
    num_layers=3,
    num_heads=4,
    width=32,
    mlp_width=80,
    max_positions=LENGTH,
    causal=False,
    norm_placement="post",
    norm_eps=1e-12,
    activation="gelu",
    token_types=2,
    embedding_norm=True,
    head_transform=True,
    head_bias=True,
)
LLAMA = ModelConfig(
    vocab_size=91,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    width=32,
    mlp_width=80,
    max_positions=LENGTH,
    positions="rotary",
    rotary_base=500.0,
    norm="rmsnorm",
    norm_eps=1e-5,
    activation="silu",
    gated_mlp=True,
    bias=False,
    tie_head=False,
)


def randomised(model: nn.Module) -> nn.Module:
    """All parameters random; initial biases of 0 and norms of 1 would hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(mean + 0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def loaded(config: ModelConfig, values: dict[str, torch.Tensor]) -> LanguageModel:
    model = LanguageModel(config).eval()
    missing, unexpected = model.load_state_dict(values, strict=False)
    assert not unexpected
    assert set(missing) <= ({"head.weight"} if config.tie_head else set())
    return model


def gpt2_values() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    config = transformers.GPT2Config(vocab_size=91, n_positions=LENGTH, n_embd=32, n_layer=3, n_head=4)
    theirs = randomised(transformers.GPT2LMHeadModel(config))
    source = theirs.transformer.state_dict()
    values = {"embedding.token.weight": source["wte.weight"], "embedding.position.weight": source["wpe.weight"]}
    renamed = {"ln_1": "attention_norm", "attn.c_proj": "attention.output", "ln_2": "mlp_norm"}
    renamed |= {"mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
    # Their Conv1D keeps matrices as (in, out), ours are (out, in); c_attn is query, key, value side by side.
    source = {name: value.T if "c_" in name and value.ndim == 2 else value for name, value in source.items()}
    for i in range(3):
        for kind in ("weight", "bias"):
            parts = source[f"h.{i}.attn.c_attn.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                values[f"blocks.{i}.attention.{name}.{kind}"] = part
            for old, new in renamed.items():
                values[f"blocks.{i}.{new}.{kind}"] = source[f"h.{i}.{old}.{kind}"]
    values |= {f"final_norm.{kind}": source[f"ln_f.{kind}"] for kind in ("weight", "bias")}
    return theirs, values


def bert_values(theirs: nn.Module | None = None) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    config = transformers.BertConfig(
        vocab_size=91,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=LENGTH,
    )
    theirs = theirs or randomised(transformers.BertForMaskedLM(config))
    source = theirs.state_dict()
    tables = {"token": "word", "position": "position", "token_type": "token_type"}
    values = {
        f"embedding.{new}.weight": source[f"bert.embeddings.{old}_embeddings.weight"] for new, old in tables.items()
    }
    renamed = {f"attention.{name}": f"attention.self.{name}" for name in ("query", "key", "value")}
    renamed |= {"attention.output": "attention.output.dense", "attention_norm": "attention.output.LayerNorm"}
    renamed |= {"mlp.up": "intermediate.dense", "mlp.down": "output.dense", "mlp_norm": "output.LayerNorm"}
    for kind in ("weight", "bias"):
        values[f"embedding.norm.{kind}"] = source[f"bert.embeddings.LayerNorm.{kind}"]
        values[f"head.transform.dense.{kind}"] = source[f"cls.predictions.transform.dense.{kind}"]
        values[f"head.transform.norm.{kind}"] = source[f"cls.predictions.transform.LayerNorm.{kind}"]
        for i in range(3):
            for new, old in renamed.items():
                values[f"blocks.{i}.{new}.{kind}"] = source[f"bert.encoder.layer.{i}.{old}.{kind}"]
    values["head.bias"] = source["cls.predictions.bias"]
    return theirs, values


def llama_values() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    config = transformers.LlamaConfig(
        vocab_size=91,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=LENGTH,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=False,
    )
    theirs = randomised(transformers.LlamaForCausalLM(config))
    source = theirs.state_dict()
    values = {"embedding.token.weight": source["model.embed_tokens.weight"], "head.weight": source["lm_head.weight"]}
    values["final_norm.weight"] = source["model.norm.weight"]
    names = {"query": "q", "key": "k", "value": "v", "output": "o"}
    renamed = {f"attention.{new}": f"self_attn.{old}_proj" for new, old in names.items()}
    renamed |= {f"mlp.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    renamed |= {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    for i in range(3):
        for new, old in renamed.items():
            values[f"blocks.{i}.{new}.weight"] = source[f"model.layers.{i}.{old}.weight"]
    return theirs, values


def test_the_pair_head_is_that_of_bert_for_pretraining():
    config = transformers.BertConfig(
        vocab_size=91,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    theirs = randomised(transformers.BertForPreTraining(config))
    values = bert_values(theirs)[1]
    source = theirs.state_dict()
    for kind in ("weight", "bias"):
        values[f"pair_head.pooler.{kind}"] = source[f"bert.pooler.dense.{kind}"]
        values[f"pair_head.classifier.{kind}"] = source[f"cls.seq_relationship.{kind}"]
    ours = loaded(ModelConfig(**{**vars(BERT), "pair_head": True}), values)
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(0, 91, (4, LENGTH), generator=generator)
    types_BT = torch.randint(0, 2, (4, LENGTH), generator=generator)
    labels_BT = ids_BT.masked_fill(torch.rand(ids_BT.shape, generator=generator) < 0.8, -100)
    pairs_B = torch.tensor([0, 1, 1, 0])
    expected = theirs(ids_BT, token_type_ids=types_BT, labels=labels_BT, next_sentence_label=pairs_B)
    count = (labels_BT != -100).sum()
    loss = ours(
        ids_BT,
        labels_BT=labels_BT,
        token_types_BT=types_BT,
        pair_labels_B=pairs_B,
        pair_weight=float(count) / len(pairs_B),
    )
    torch.testing.assert_close(loss / count, expected.loss, atol=1e-5, rtol=1e-5)
    logits = ours.pair_head(ours.hidden_states(ids_BT, token_types_BT=types_BT)[:, 0])
    torch.testing.assert_close(logits, expected.seq_relationship_logits, atol=1e-5, rtol=1e-5)


CASES = {"gpt2": (GPT2, gpt2_values), "bert": (BERT, bert_values), "llama": (LLAMA, llama_values)}


def difference(config: ModelConfig, family: str) -> float:
    """Largest relative difference of the logits over two full rows."""
    theirs, values = CASES[family][1]()
    ours = loaded(config, values)
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(0, 91, (2, LENGTH), generator=generator)
    types_BT = torch.randint(0, 2, (2, LENGTH), generator=generator) if config.token_types else None
    with torch.no_grad():
        extra = {} if types_BT is None else {"token_type_ids": types_BT}
        expected = theirs(ids_BT, **extra).logits
        got = ours(ids_BT, token_types_BT=types_BT)
    assert expected.std() > 0.2, "logits near 0 would make every comparison pass"
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("family", CASES)
def test_logits_are_equal(family):
    assert difference(CASES[family][0], family) <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "field", "wrong"),
    [
        ("gpt2", "activation", "gelu"),
        ("gpt2", "norm_eps", 1e-3),
        ("bert", "activation", "gelu_tanh"),
        ("bert", "norm_eps", 1e-4),
        ("llama", "rotary_base", 510.0),
        ("llama", "norm_eps", 1e-3),
    ],
)
def test_the_tolerance_catches_a_wrong_setting(family, field, wrong):
    config = ModelConfig(**{**vars(CASES[family][0]), field: wrong})
    assert difference(config, family) > 2 * TOLERANCE
