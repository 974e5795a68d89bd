"""The families that are known, and which of them a model or a config.json is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingot.model.config import ModelConfig
from ingot.model.finetuning.task_model import TaskConfig
from ingot.model.huggingface.families.bert import BERT
from ingot.model.huggingface.families.gpt2 import GPT2
from ingot.model.huggingface.families.llama import LLAMA
from ingot.model.huggingface.families.modernbert import MODERNBERT
from ingot.model.huggingface.families.qwen2 import QWEN2
from ingot.model.huggingface.families.qwen3 import QWEN3
from ingot.model.huggingface.families.roberta import ROBERTA
from ingot.model.huggingface.mapping.family import KINDS, Family

FAMILIES = {family.model_type: family for family in (GPT2, LLAMA, QWEN2, QWEN3, BERT, ROBERTA, MODERNBERT)}


def family_of(values: Mapping[str, Any]) -> Family:
    """The family of a config.json.

    Raises:
        ValueError: a model_type that is not known.
    """
    name = values.get("model_type")
    if name not in FAMILIES:
        raise ValueError(f"model_type is {name!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def kind_of(family: Family, values: Mapping[str, Any], kind: str | None) -> str:
    """The wished kind of model, or the one that `architectures` of a config.json names.

    Raises:
        ValueError: a kind that the family has not, or an architecture that is not known.
    """
    if kind is not None:
        if kind not in KINDS or kind not in family.heads:
            raise ValueError(f"{family.model_type} has no models of kind {kind!r}; choose {', '.join(family.heads)}")
        return kind
    names = values.get("architectures") or [None]
    for kind, head in family.heads.items():
        if head.architecture == names[0]:
            return kind
    known = ", ".join(head.architecture for head in family.heads.values())
    raise ValueError(f"architectures is {values.get('architectures')!r}; known are {known}; or name a kind")


def choose_family(config: ModelConfig, kind: str, task: TaskConfig | None, name: str | None) -> Family:
    """The family that a model is written as: the named one, or the first that can express it.

    Raises:
        ValueError: none can, or not the named one, with what is in the way.
    """
    if name is not None and name not in FAMILIES:
        raise ValueError(f"family is {name!r}; known are {', '.join(FAMILIES)}")
    candidates = FAMILIES if name is None else {name: FAMILIES[name]}
    problems = {}
    for candidate, family in candidates.items():
        problems[candidate] = family.differences(config, kind, task)
        if not problems[candidate]:
            return family
    nearest = sorted(problems, key=lambda each: len(problems[each]))[:3]
    listed = "; ".join(f"{each}: {', '.join(problems[each][:6])}" for each in nearest)
    which = "no known family can" if name is None else f"family {name} cannot"
    raise ValueError(f"{which} hold this model; what differs: {listed}")
