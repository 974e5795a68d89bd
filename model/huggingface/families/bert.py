"""BERT (arXiv 1810.04805): post-norm, token types, pooler, next-sentence head. RoBERTa has the same body."""

from typing import Any

from ingot.model.huggingface.mapping.family import Family, Head
from ingot.model.huggingface.mapping.key_map import Row
from ingot.model.huggingface.mapping.settings import ACTIVATIONS, Key, Settings

BODY = (
    Row("embedding.token", "@embeddings.word_embeddings"),
    Row("embedding.position", "@embeddings.position_embeddings"),
    Row("embedding.token_type", "@embeddings.token_type_embeddings"),
    Row("embedding.norm", "@embeddings.LayerNorm"),
    Row("blocks.*.attention.query", "@encoder.layer.*.attention.self.query"),
    Row("blocks.*.attention.key", "@encoder.layer.*.attention.self.key"),
    Row("blocks.*.attention.value", "@encoder.layer.*.attention.self.value"),
    Row("blocks.*.attention.output", "@encoder.layer.*.attention.output.dense"),
    Row("blocks.*.attention_norm", "@encoder.layer.*.attention.output.LayerNorm"),
    Row("blocks.*.mlp.up", "@encoder.layer.*.intermediate.dense"),
    Row("blocks.*.mlp.down", "@encoder.layer.*.output.dense"),
    Row("blocks.*.mlp_norm", "@encoder.layer.*.output.LayerNorm"),
)
KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "hidden_size"),
    Key("num_hidden_layers", "num_hidden_layers"),
    Key("num_attention_heads", "num_attention_heads"),
    Key("intermediate_size", "intermediate_size"),
    Key("type_vocab_size", "type_vocab_size", 2),
    Key("hidden_dropout_prob", "dropout", 0.1),
    Key("attention_probs_dropout_prob", "attention_dropout", 0.1),
    Key("initializer_range", "initializer_range", 0.02),
    Key("layer_norm_eps", "norm_eps", 1e-12),
    Key("tie_word_embeddings", "tie_word_embeddings", True),
)
IMPLIED = {
    "causal": False,
    "positions": "learned",
    "norm": "layernorm",
    "norm_placement": "post",
    "bias": True,
    "embedding_norm": True,
    "head_transform": True,
    "head_bias": True,
    "residual_scaled_init": False,
}
FIXED = {"is_decoder": False, "position_embedding_type": "absolute"}
BUFFERS = r"@embeddings\.(position_ids|token_type_ids)"

POOLER = Row("head.layer.dense", "@pooler.dense")
LANGUAGE = (
    Row("head.transform.dense", "cls.predictions.transform.dense"),
    Row("head.transform.norm", "cls.predictions.transform.LayerNorm"),
    Row("head.weight", "cls.predictions.decoder.weight"),
    Row("head.bias", "cls.predictions.bias", twin="cls.predictions.decoder.bias"),
)
PAIR = (Row("pair_head.pooler", "@pooler.dense"), Row("pair_head.classifier", "cls.seq_relationship"))


def read(settings: Settings) -> dict[str, Any]:
    if settings.number("type_vocab_size", 2) < 1:
        settings.refuse("type_vocab_size", 0, "at least 1: transformers adds a token type to every token")
    return {}


FAMILY = Family(
    model_type="bert",
    prefix="bert.",
    body=BODY,
    heads={
        "language": Head("BertForMaskedLM", LANGUAGE),
        "pretraining": Head("BertForPreTraining", LANGUAGE + PAIR, model={"pair_head": True}),
        "sequence": Head(
            "BertForSequenceClassification",
            (POOLER, Row("head.classifier", "classifier")),
            {"pooling": "first", "layer": "tanh"},
        ),
        "choice": Head(
            "BertForMultipleChoice",
            (POOLER, Row("head.classifier", "classifier")),
            {"pooling": "first", "layer": "tanh"},
        ),
        "token": Head("BertForTokenClassification", (Row("head.classifier", "classifier"),), {"layer": "none"}),
        "span": Head("BertForQuestionAnswering", (Row("head.classifier", "qa_outputs"),), {"layer": "none"}),
        "features": Head("BertModel", (POOLER,), {"layer": "tanh"}),
    },
    keys=(
        *KEYS,
        Key("max_position_embeddings", "max_position_embeddings"),
        Key("hidden_act", "activation", "gelu", ACTIVATIONS),
    ),
    implied=IMPLIED,
    fixed=FIXED,
    read=read,
    buffers=BUFFERS,
)
