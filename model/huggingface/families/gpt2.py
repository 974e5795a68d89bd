"""GPT-2 (Radford et al. 2019): matrices are (in, out), and query, key and value are one matrix."""

from ingot.model.huggingface.mapping.family import Family, Head
from ingot.model.huggingface.mapping.key_map import Row
from ingot.model.huggingface.mapping.settings import ACTIVATIONS, Key

BODY = (
    Row("embedding.token", "@wte"),
    Row("embedding.position", "@wpe"),
    Row("blocks.*.attention_norm", "@h.*.ln_1"),
    Row(
        ("blocks.*.attention.query", "blocks.*.attention.key", "blocks.*.attention.value"),
        "@h.*.attn.c_attn",
        transposed=True,
    ),
    Row("blocks.*.attention.output", "@h.*.attn.c_proj", transposed=True),
    Row("blocks.*.mlp_norm", "@h.*.ln_2"),
    Row("blocks.*.mlp.up", "@h.*.mlp.c_fc", transposed=True),
    Row("blocks.*.mlp.down", "@h.*.mlp.c_proj", transposed=True),
    Row("final_norm", "@ln_f"),
)
KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("n_positions", "max_position_embeddings"),
    Key("n_embd", "hidden_size"),
    Key("n_layer", "num_hidden_layers"),
    Key("n_head", "num_attention_heads"),
    Key("n_inner", "intermediate_size", None),
    Key("activation_function", "activation", "gelu_new", {"gelu_new": "gelu_tanh", **ACTIVATIONS}),
    Key("layer_norm_epsilon", "norm_eps", 1e-5),
    Key("embd_pdrop", "dropout", 0.1),
    Key("resid_pdrop", "dropout", 0.1),  # if they differ, the later key is used
    Key("attn_pdrop", "attention_dropout", 0.1),
    Key("initializer_range", "initializer_range", 0.02),
    Key("tie_word_embeddings", "tie_word_embeddings", True),
)

FAMILY = Family(
    model_type="gpt2",
    prefix="transformer.",
    body=BODY,
    heads={
        "language": Head("GPT2LMHeadModel", (Row("head", "lm_head"),)),
        "sequence": Head(
            "GPT2ForSequenceClassification",
            (Row("head.classifier", "score"),),
            {"pooling": "last", "layer": "none", "bias": False},
        ),
        "token": Head("GPT2ForTokenClassification", (Row("head.classifier", "classifier"),), {"layer": "none"}),
        "span": Head("GPT2ForQuestionAnswering", (Row("head.classifier", "qa_outputs"),), {"layer": "none"}),
        "features": Head("GPT2Model", (), {"layer": "none"}),
    },
    keys=KEYS,
    implied={"causal": True, "positions": "learned", "norm": "layernorm", "bias": True, "residual_scaled_init": True},
    fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    buffers=r"@h\.\d+\.attn\.(bias|masked_bias)",
)
