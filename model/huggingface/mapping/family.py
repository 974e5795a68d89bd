"""A family of released models: the key map of its tensors and the mapping of its settings, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ingot.model.config import BIAS_GROUPS, ModelConfig
from ingot.model.finetuning.task_model import TaskConfig
from ingot.model.huggingface.mapping.key_map import Row
from ingot.model.huggingface.mapping.rope import FIELDS_OF_TYPE
from ingot.model.huggingface.mapping.settings import Key, Settings

LANGUAGE_KINDS = ("language", "pretraining")
"""Kinds that are a `LanguageModel`, the second one with a pair head. All other kinds are a `TaskModel`."""
KINDS = (*LANGUAGE_KINDS, "sequence", "choice", "token", "span", "features")

_UNREPRESENTABLE = {"is_encoder_decoder": False, "add_cross_attention": False, "quantization_config": None}
_PROBLEMS = {
    "single_label_classification": "classes",
    "multi_label_classification": "labels",
    "regression": "regression",
}


@dataclass(frozen=True)
class Head:
    """A kind of model of a family.

    Attributes:
        architecture: The class in transformers.
        rows: Key map of the tensors of the head.
        task: Fields of the TaskConfig that the class fixes.
        prefix: Prefix of the tensors of the body, if it differs from the prefix of the family.
        model: Fields of the ModelConfig that this kind sets.
    """

    architecture: str
    rows: tuple[Row, ...] = ()
    task: Mapping[str, Any] = field(default_factory=dict)
    prefix: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)


def _nothing(_: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """Models of one `model_type`.

    Attributes:
        model_type: The name in config.json.
        prefix: Prefix of the tensors of the body in models with a head.
        body: Key map of the body.
        heads: Heads by kind, of `KINDS`.
        keys: Settings that correspond to one field of the ModelConfig.
        implied: Fields of the ModelConfig that are the same in all models of the family.
        fixed: Settings for which only one value is supported.
        read, write: The other fields of the ModelConfig from the settings, and the other settings from the ModelConfig.
        task_keys: Settings that correspond to one field of the TaskConfig, by kind.
        buffers: Pattern of names in old files that are not parameters.
    """

    model_type: str
    prefix: str
    body: tuple[Row, ...]
    heads: Mapping[str, Head]
    keys: tuple[Key, ...]
    implied: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Settings], dict[str, Any]] = _nothing
    write: Callable[[ModelConfig], dict[str, Any]] = _nothing
    task_keys: Mapping[str, tuple[Key, ...]] = field(default_factory=dict)
    buffers: str = "(?!)"

    def rows(self, kind: str) -> tuple[Row, ...]:
        return self.body + self.heads[kind].rows

    def prefix_of(self, kind: str) -> str:
        if kind == "features":
            return ""
        own = self.heads[kind].prefix
        return self.prefix if own is None else own

    def read_model(self, values: Mapping[str, Any], kind: str) -> ModelConfig:
        """The ModelConfig of a config.json.

        Raises:
            ValueError: settings are not supported; the message lists all of them.
        """
        settings = Settings(values)
        for key, supported in {**_UNREPRESENTABLE, **self.fixed}.items():
            settings.only(key, supported)
        if settings.get("pruned_heads"):
            settings.refuse("pruned_heads", values["pruned_heads"], "none")
        fields = {**self.implied, **self.heads[kind].model}
        fields |= {key.ours: settings.take(key) for key in self.keys}
        fields |= self.read(settings)
        settings.finish()
        config = ModelConfig(**fields)
        config.validate()
        return config

    def read_task(self, values: Mapping[str, Any], kind: str) -> TaskConfig:
        """The TaskConfig of a config.json."""
        settings = Settings(values)
        fields = dict(self.heads[kind].task)
        fields |= {key.ours: settings.take(key) for key in self.task_keys.get(kind, ()) if key.ours not in fields}
        names = settings.get("id2label")
        number = {"span": 2, "choice": 1}.get(kind) or settings.number("num_labels", 2)
        if number < 1:
            settings.refuse("num_labels", number, "1 or more")
        if names is not None and kind != "choice":
            try:
                by_id = {int(label): str(name) for label, name in names.items()}
                labels = [by_id[i] for i in range(len(by_id))]
            except (AttributeError, KeyError, ValueError):
                settings.refuse("id2label", names, "names of the labels 0, 1, ...")
                labels = []
            number = len(labels)
            if kind != "span" and labels != default_labels(number):
                fields["labels"] = labels
        if kind in ("sequence", "choice", "token"):
            fields["dropout"] = settings.probability("classifier_dropout", "hidden_dropout_prob")
        if kind == "sequence":
            problem = settings.get("problem_type")
            if problem is not None and (not isinstance(problem, str) or problem not in _PROBLEMS):
                settings.refuse("problem_type", problem, " or ".join(map(repr, _PROBLEMS)))
                problem = None
            fields["problem"] = _PROBLEMS.get(problem, "regression" if number == 1 else "classes")
        settings.finish()
        if kind == "choice":
            fields["problem"] = "choice"
        fields["kind"] = "sequence" if kind == "choice" else kind
        return TaskConfig(num_labels=number, **fields)

    def write_model(self, config: ModelConfig) -> dict[str, Any]:
        """The settings for a ModelConfig. `differences` tells whether they express the same model."""
        resolved = {**asdict(config), "num_key_value_heads": config.kv_heads, "intermediate_size": config.mlp_size}
        resolved |= {f"{group}_bias": config.has_bias(group) for group in BIAS_GROUPS}
        values = {key.theirs: key.written(resolved[key.ours]) for key in self.keys}
        return {"model_type": self.model_type, **values, **self.fixed, **self.write(config)}

    def write_task(self, task: TaskConfig) -> dict[str, Any]:
        values = {key.theirs: key.written(getattr(task, key.ours)) for key in self.task_keys.get(task.kind, ())}
        if task.kind in ("sequence", "token"):
            labels = task.labels or default_labels(task.num_labels)
            values |= {"id2label": {str(i): name for i, name in enumerate(labels)}}
            values |= {"label2id": {name: i for i, name in enumerate(labels)}, "classifier_dropout": task.dropout}
        if task.kind == "sequence" and task.problem != "choice":
            values["problem_type"] = next(theirs for theirs, ours in _PROBLEMS.items() if ours == task.problem)
        return values

    def differences(self, config: ModelConfig, kind: str, task: TaskConfig | None) -> list[str]:
        """The properties of a model that this family cannot express; empty if it can express the model."""
        if kind not in self.heads:
            return [f"it has no models of kind {kind!r}"]
        fields = computing_fields(config, kind, task)
        try:
            written = self.write_model(config)
            back = computing_fields(self.read_model(written, kind), kind, task)
            found = [
                f"{name} is {fields[name]!r} and would be {back.get(name)!r}"
                for name in fields
                if fields[name] != back.get(name)
            ]
            if task is not None:
                own, other = task_fields(task), task_fields(self.read_task({**written, **self.write_task(task)}, kind))
                found += [f"task.{n} is {own[n]!r} and would be {other[n]!r}" for n in own if own[n] != other[n]]
        except ValueError as error:
            implied = {name: value for name, value in self.implied.items() if name in fields}
            found = [f"{n} is {fields[n]!r} and would be {v!r}" for n, v in implied.items() if fields[n] != v]
            return [*found, str(error)]
        return found


def kind_of_task(task: TaskConfig) -> str:
    """The kind, of `KINDS`, of the model of a task."""
    return "choice" if task.problem == "choice" else task.kind


def default_labels(number: int) -> list[str]:
    """The names that transformers gives to labels without names."""
    return [f"LABEL_{i}" for i in range(number)]


_TRAINING = {"dropout", "attention_dropout", "initializer_range", "residual_scaled_init"}
_HEAD = {"tie_word_embeddings", "head_transform", "head_bias", "final_logit_softcapping", "pair_head"}


def computing_fields(config: ModelConfig, kind: str, task: TaskConfig | None) -> dict[str, Any]:
    """The fields of a configuration that determine what its model computes, with all defaults filled in."""
    fields = {name: value for name, value in asdict(config).items() if name not in _TRAINING}
    fields |= {
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_size,
    }
    fields |= {f"{group}_bias": config.has_bias(group) for group in BIAS_GROUPS}
    fields["norm_bias"] = fields["norm_bias"] and config.norm == "layernorm"
    local = [config.is_local(layer) for layer in range(config.num_hidden_layers)]
    fields["layer_pattern"] = "".join("L" if each else "G" for each in local)
    if not any(local):
        fields["sliding_window"] = None
    if config.positions == "rotary":
        del fields["position_offset"]
        base = config.local_rope_theta
        fields["local_rope_theta"] = config.rope_theta if base is None or not any(local) else base
        if all(local):
            fields["rope_theta"] = fields["local_rope_theta"]
        scaling = fields["rope_scaling"]
        if scaling is not None:
            used = {"rope_type", *FIELDS_OF_TYPE[scaling["rope_type"]]}
            fields["rope_scaling"] = {n: v for n, v in scaling.items() if n in used}
    else:
        for name in ("rope_theta", "local_rope_theta", "rope_scaling"):
            del fields[name]
    transform = task.layer == "transform" if task is not None else config.head_transform
    if not transform:
        del fields["bias"]
    if kind not in LANGUAGE_KINDS:
        fields = {name: value for name, value in fields.items() if name not in _HEAD}
    return fields


def task_fields(task: TaskConfig) -> dict[str, Any]:
    """The fields of a task that determine its head and what the head computes."""
    fields = {name: value for name, value in asdict(task).items() if name != "dropout"}
    fields["labels"] = task.labels or default_labels(task.num_labels)
    if task.kind in ("span", "features"):
        del fields["labels"]
    if task.kind == "features":
        fields = {name: value for name, value in fields.items() if name in ("kind", "layer")}
    if task.kind != "sequence":
        fields.pop("pooling", None)
        fields.pop("problem", None)
    return fields
