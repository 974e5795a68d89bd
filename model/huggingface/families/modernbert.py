"""ModernBERT (arXiv 2412.13663): global and local layers with different rope_theta, GeGLU, no norm before the first
attention."""

from typing import Any

from ingot.model.config import ModelConfig
from ingot.model.huggingface.mapping.family import Family, Head
from ingot.model.huggingface.mapping.key_map import Row
from ingot.model.huggingface.mapping.layer_types import read_pattern, written_types
from ingot.model.huggingface.mapping.rope import read_rope_by_layer_type, written_scaling
from ingot.model.huggingface.mapping.settings import ACTIVATIONS, Key, Settings

BODY = (
    Row("embedding.token", "@embeddings.tok_embeddings"),
    Row("embedding.norm", "@embeddings.norm"),
    Row("blocks.*.attention_norm", "@layers.*.attn_norm"),
    Row(("blocks.*.attention.query", "blocks.*.attention.key", "blocks.*.attention.value"), "@layers.*.attn.Wqkv"),
    Row("blocks.*.attention.output", "@layers.*.attn.Wo"),
    Row("blocks.*.mlp_norm", "@layers.*.mlp_norm"),
    Row(("blocks.*.mlp.gate", "blocks.*.mlp.up"), "@layers.*.mlp.Wi"),  # the first half is the activated one
    Row("blocks.*.mlp.down", "@layers.*.mlp.Wo"),
    Row("final_norm", "@final_norm"),
)
KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "hidden_size"),
    Key("intermediate_size", "intermediate_size"),
    Key("num_hidden_layers", "num_hidden_layers"),
    Key("num_attention_heads", "num_attention_heads"),
    Key("max_position_embeddings", "max_position_embeddings"),
    Key("hidden_activation", "activation", "gelu", ACTIVATIONS),
    Key("norm_eps", "norm_eps", 1e-5),
    Key("norm_bias", "norm_bias", False),
    Key("mlp_bias", "mlp_bias", False),
    Key("attention_bias", "qkv_bias", False),
    Key("attention_bias", "output_bias", False),
    Key("classifier_bias", "bias", False),  # of the dense layer of every head
    Key("decoder_bias", "head_bias", True),
    Key("attention_dropout", "attention_dropout", 0.0),
    Key("embedding_dropout", "dropout", 0.0),
    Key("initializer_range", "initializer_range", 0.02),
    Key("tie_word_embeddings", "tie_word_embeddings", True),
)
DENSE = Row("head.layer.dense", "head.dense")
NORM = Row("head.layer.norm", "head.norm")
CLASSIFIER = (DENSE, NORM, Row("head.classifier", "classifier"))
BASES = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}


def _read(settings: Settings) -> dict[str, Any]:
    if settings.get("classifier_activation", "gelu") != settings.get("hidden_activation", "gelu"):
        settings.refuse(
            "classifier_activation", settings.get("classifier_activation", "gelu"), "the same as hidden_activation"
        )
    every = settings.number("global_attn_every_n_layers", 3)
    layers = settings.number("num_hidden_layers")
    types = ["sliding_attention" if every < 1 or layer % every else "full_attention" for layer in range(layers)]
    pattern = read_pattern(settings, types)
    kinds = read_rope_by_layer_type(settings, BASES)
    (base, scaling), (local_base, local_scaling) = kinds["full_attention"], kinds["sliding_attention"]
    if scaling != local_scaling and "L" in pattern:
        settings.refuse("rope_parameters", settings.get("rope_parameters"), "one scaling for both types of layers")
    return {
        "layer_pattern": pattern,
        "sliding_window": settings.number("local_attention", 128) // 2 if "L" in pattern else None,
        "rope_theta": base,
        "local_rope_theta": local_base if "L" in pattern else None,
        "rope_scaling": scaling,
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    types, scaling = written_types(config), written_scaling(config)
    local_base = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    bases = {"full_attention": config.rope_theta, "sliding_attention": local_base}
    values = {
        "layer_types": types,
        "rope_parameters": {kind: {"rope_theta": base, **scaling} for kind, base in bases.items()},
        "global_rope_theta": config.rope_theta,
        "local_rope_theta": local_base,
        "classifier_activation": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "mlp_dropout": config.dropout,
        "sparse_prediction": False,
        "cls_token_id": None,  # the defaults are ids of the released vocabulary
        "sep_token_id": None,
    }
    if config.sliding_window is not None:
        values["local_attention"] = 2 * config.sliding_window
    for every in range(1, config.num_hidden_layers + 1):  # the setting of transformers 4
        if types == [list(BASES)[bool(layer % every)] for layer in range(config.num_hidden_layers)]:
            values["global_attn_every_n_layers"] = every
            break
    return values


FAMILY = Family(
    model_type="modernbert",
    prefix="model.",
    body=BODY,
    heads={
        "language": Head(
            "ModernBertForMaskedLM",
            (
                Row("head.transform.dense", "head.dense"),
                Row("head.transform.norm", "head.norm"),
                Row("head.weight", "decoder.weight"),
                Row("head.bias", "decoder.bias"),
            ),
        ),
        "sequence": Head("ModernBertForSequenceClassification", CLASSIFIER, {"layer": "transform"}),
        "token": Head("ModernBertForTokenClassification", CLASSIFIER, {"layer": "transform"}),
        "span": Head("ModernBertForQuestionAnswering", CLASSIFIER, {"layer": "transform"}),
        "features": Head("ModernBertModel", (), {"layer": "none"}),
    },
    keys=KEYS,
    implied={
        "causal": False,
        "positions": "rotary",
        "norm": "layernorm",
        "gated_mlp": True,
        "first_norm": False,
        "embedding_norm": True,
        "head_transform": True,
        "residual_scaled_init": True,
    },
    read=_read,
    write=_write,
    task_keys={"sequence": (Key("classifier_pooling", "pooling", "cls", {"cls": "first", "mean": "mean"}),)},
    buffers=r"@layers\.\d+\.attn\.rotary_emb\.inv_freq",
)
