"""All model families, and the choice of the family for a config.json or for a model.

To add a family, write its file in this folder (with `FAMILY`) and add the name of the file to `MODULES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ingot.model.config import ModelConfig
from ingot.model.finetuning.task_model import TaskConfig
from ingot.model.huggingface.mapping.family import KINDS, Family, kind_of_task

# In this order a family is chosen for a model that several could express.
MODULES = ("gpt2", "llama", "qwen2", "qwen3", "bert", "roberta", "modernbert")
FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (import_module(f"{__package__}.{name}").FAMILY for name in MODULES)
}


def family_of(values: Mapping[str, Any]) -> Family:
    """The family of a config.json.

    Raises:
        ValueError: the model_type is not supported.
    """
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"model_type is {name!r}; supported are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def kind_of(family: Family, values: Mapping[str, Any], kind: str | None) -> str:
    """The kind of model that is asked for, or the one that `architectures` of a config.json names.

    Raises:
        ValueError: the family does not have the kind, or the architecture is not supported.
    """
    if kind is not None:
        if kind not in KINDS or kind not in family.heads:
            raise ValueError(
                f"{family.model_type} has no models of kind {kind!r}; choose one of {', '.join(family.heads)}"
            )
        return kind
    names = values.get("architectures") or [None]
    for kind, head in family.heads.items():
        if isinstance(names, list) and head.architecture == names[0]:
            return kind
    supported = ", ".join(head.architecture for head in family.heads.values())
    raise ValueError(f"architectures is {values.get('architectures')!r}; supported are {supported}; or pass kind")


def export_note(config: ModelConfig, task: TaskConfig | None = None) -> str:
    """A line that says as what a model opens in transformers once it is exported, or why it does not."""
    kind = ("pretraining" if config.pair_head else "language") if task is None else kind_of_task(task)
    try:
        family = choose_family(config, kind, task, None)
    except ValueError as error:
        return f"it cannot be exported to transformers: {error}. To export it, change these, or set model.preset"
    return f"exported, it opens in transformers as {family.heads[kind].architecture} ({family.model_type})"


def choose_family(config: ModelConfig, kind: str, task: TaskConfig | None, name: str | None) -> Family:
    """The family that a model is exported as: the named one, or the first one that can express it.

    Raises:
        ValueError: no family, or not the named one, can express the model; the message lists the differences.
    """
    if name is not None and name not in FAMILIES:
        raise ValueError(f"family is {name!r}; supported are {', '.join(FAMILIES)}")
    candidates = FAMILIES if name is None else {name: FAMILIES[name]}
    problems = {}
    for candidate, family in candidates.items():
        problems[candidate] = family.differences(config, kind, task)
        if not problems[candidate]:
            return family
    nearest = sorted(problems, key=lambda each: len(problems[each]))[:3]
    listed = "; ".join(f"{each}: {', '.join(problems[each][:6])}" for each in nearest)
    which = "no supported family can" if name is None else f"family {name} cannot"
    raise ValueError(f"{which} express this model; the differences are: {listed}")
