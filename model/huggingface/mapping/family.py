"""What a family of released models is: key maps and settings, both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ingot.model.config import ModelConfig
from ingot.model.finetuning.task_model import TaskConfig
from ingot.model.huggingface.mapping.key_map import Row
from ingot.model.huggingface.mapping.rope import OF_A_KIND
from ingot.model.huggingface.mapping.settings import Key, Settings

LANGUAGE_KINDS = ("language", "pretraining")
"""Kinds that are a `LanguageModel`, the second with a pair head. The others are those of a `TaskModel`."""
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
        architecture: Their class.
        rows: Key map of what the body does not have.
        task: Fields of the TaskConfig that the class fixes.
        prefix: That of the body's tensors, where it isn't the family's.
        model: Fields of the ModelConfig that this kind has and others have not.
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
        model_type: Its name in config.json.
        prefix: Of the body's tensors in models with a head.
        body: Key map of the body.
        heads: By kind; the kinds are `KINDS`.
        keys: Settings that are one field of ours each.
        implied: Fields of ours that all models of the family have.
        fixed: Settings with the one value that we can represent.
        read, write: What else is to be had from the settings for the ModelConfig, and the other way.
        task_keys: Settings that are one field of the TaskConfig, by kind.
        buffers: Pattern of names in old files that are no parameters.
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
        """The ModelConfig that a config.json means.

        Raises:
            ValueError: all settings that we cannot represent.
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
        """The TaskConfig that a config.json means."""
        settings = Settings(values)
        fields = dict(self.heads[kind].task)
        fields |= {key.ours: settings.take(key) for key in self.task_keys.get(kind, ()) if key.ours not in fields}
        names = settings.get("id2label")
        number = {"span": 2, "choice": 1}.get(kind) or settings.get("num_labels", 2)
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
            fields["dropout"] = settings.get("classifier_dropout", settings.get("hidden_dropout_prob", 0.0))
        if kind == "sequence":
            problem = settings.get("problem_type")
            if problem is not None and problem not in _PROBLEMS:
                settings.refuse("problem_type", problem, " or ".join(map(repr, _PROBLEMS)))
            fields["problem"] = _PROBLEMS.get(problem, "regression" if number == 1 else "classes")
        settings.finish()
        if kind == "choice":
            kind, fields["problem"] = "sequence", "choice"
        return TaskConfig(kind=kind, num_labels=number, **fields)

    def write_model(self, config: ModelConfig) -> dict[str, Any]:
        """The settings of a ModelConfig. Whether they mean the same is for `differences` to say."""
        resolved = {**asdict(config), "num_key_value_heads": config.kv_heads, "intermediate_size": config.mlp_size}
        resolved |= {f"{place}_bias": config.has_bias(place) for place in ("qkv", "output", "mlp", "norm")}
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
        """What of a model this family cannot express; nothing where it can hold it."""
        if kind not in self.heads:
            return [f"it has no models of kind {kind!r}"]
        mine = computing_fields(config, kind, task)
        try:
            written = self.write_model(config)
            back = computing_fields(self.read_model(written, kind), kind, task)
            found = [
                f"{name} is {mine[name]!r} and would be {back.get(name)!r}"
                for name in mine
                if mine[name] != back.get(name)
            ]
            if task is not None:
                own, other = task_fields(task), task_fields(self.read_task({**written, **self.write_task(task)}, kind))
                found += [f"task.{n} is {own[n]!r} and would be {other[n]!r}" for n in own if own[n] != other[n]]
        except ValueError as error:
            implied = {name: value for name, value in self.implied.items() if name in mine}
            found = [f"{n} is {mine[n]!r} and would be {v!r}" for n, v in implied.items() if mine[n] != v]
            return [*found, str(error)]
        return found


def kind_of_task(task: TaskConfig) -> str:
    """The kind, of `KINDS`, of a task's model."""
    return "choice" if task.problem == "choice" else task.kind


def default_labels(number: int) -> list[str]:
    """What transformers calls labels without names."""
    return [f"LABEL_{i}" for i in range(number)]


_TRAINING = {"dropout", "attention_dropout", "initializer_range", "residual_scaled_init"}
_HEAD = {"tie_word_embeddings", "head_transform", "head_bias", "final_logit_softcapping", "pair_head"}


def computing_fields(config: ModelConfig, kind: str, task: TaskConfig | None) -> dict[str, Any]:
    """The fields of a configuration that decide what its model computes, with all defaults spelled out."""
    fields = {name: value for name, value in asdict(config).items() if name not in _TRAINING}
    fields |= {
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_size,
    }
    fields |= {f"{place}_bias": config.has_bias(place) for place in ("qkv", "output", "mlp", "norm")}
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
            fields["rope_scaling"] = {n: v for n, v in scaling.items() if n in {"kind", *OF_A_KIND[scaling["kind"]]}}
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
    """The fields of a task that decide what its head computes and is."""
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
