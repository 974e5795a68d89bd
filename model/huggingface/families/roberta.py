"""RoBERTa (arXiv 1907.11692): BERT whose positions start after the id of the padding token, with other heads."""

from typing import Any

from ingot.model.config import ModelConfig
from ingot.model.huggingface.families import bert
from ingot.model.huggingface.mapping.family import Family, Head
from ingot.model.huggingface.mapping.key_map import Row
from ingot.model.huggingface.mapping.settings import Key, Settings

LANGUAGE = (
    Row("head.transform.dense", "lm_head.dense"),
    Row("head.transform.norm", "lm_head.layer_norm"),
    Row("head.weight", "lm_head.decoder.weight"),
    Row("head.bias", "lm_head.bias", twin="lm_head.decoder.bias"),
)


def _read(settings: Settings) -> dict[str, Any]:
    """The index of the first position is pad_token_id + 1; max_position_embeddings includes the rows before it."""
    offset = settings.number("pad_token_id", 1) + 1
    if offset < 1:
        settings.refuse("pad_token_id", offset - 1, "at least 0: the first position is pad_token_id + 1")
    positions = settings.number("max_position_embeddings") - offset
    if positions < 1:
        settings.problems.append(f"max_position_embeddings leaves no position after pad_token_id {offset - 1}")
    return {**bert.read(settings), "position_offset": offset, "max_position_embeddings": positions}


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "pad_token_id": config.position_offset - 1,
        "max_position_embeddings": config.max_position_embeddings + config.position_offset,
    }


FAMILY = Family(
    model_type="roberta",
    prefix="roberta.",
    body=bert.BODY,
    heads={
        "language": Head("RobertaForMaskedLM", LANGUAGE),
        "sequence": Head(
            "RobertaForSequenceClassification",
            (Row("head.layer.dense", "classifier.dense"), Row("head.classifier", "classifier.out_proj")),
            {"pooling": "first", "layer": "tanh"},
        ),
        "token": Head("RobertaForTokenClassification", (Row("head.classifier", "classifier"),), {"layer": "none"}),
        "span": Head("RobertaForQuestionAnswering", (Row("head.classifier", "qa_outputs"),), {"layer": "none"}),
        "features": Head("RobertaModel", (bert.POOLER,), {"layer": "tanh"}),
    },
    # The activation of the head is always gelu. ModelConfig has one activation, so hidden_act must be gelu too.
    keys=(*bert.KEYS, Key("hidden_act", "activation", "gelu", {"gelu": "gelu"})),
    implied=bert.IMPLIED,
    fixed=bert.FIXED,
    read=_read,
    write=_write,
    buffers=bert.BUFFERS,
)
