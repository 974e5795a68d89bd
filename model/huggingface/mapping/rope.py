"""Rotary positions in a config.json: `rope_parameters` of transformers 5, `rope_theta` and `rope_scaling` before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ingot.model.config import ModelConfig, RopeScaling
from ingot.model.huggingface.mapping.settings import Settings

ORIGINAL = "original_max_position_embeddings"
SCALINGS = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        ORIGINAL: "original_max_position_embeddings",
    },
    "yarn": {
        "factor": "factor",
        ORIGINAL: "original_max_position_embeddings",
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
    },
    "longrope": {
        "factor": "factor",
        ORIGINAL: "original_max_position_embeddings",
        "attention_factor": "attention_factor",
        "short_factor": "short_factor",
        "long_factor": "long_factor",
    },
}
"""For each kind their keys and our fields."""
OF_A_KIND = {
    kind: {*keys.values(), *(["original_max_position_embeddings"] if kind != "linear" else [])}
    for kind, keys in SCALINGS.items()
}
"""The fields of ours that matter for a kind."""


def read_rope(settings: Settings, default_theta: float = 10000.0) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a model whose layers turn alike."""
    parameters = _parameters(settings)
    if any(isinstance(value, Mapping) for value in parameters.values()):
        settings.refuse("rope_parameters", parameters, "one set for all layers")
        parameters = {}
    theta = parameters.get("rope_theta") or settings.get("rope_theta", default_theta)
    return {"rope_theta": float(theta), "rope_scaling": _scaling(settings, parameters)}


def read_rope_of_kinds(settings: Settings, bases: Mapping[str, tuple[str, float]]) -> dict[str, tuple[float, Any]]:
    """Base and scaling of each kind of layer (ModernBERT).

    Args:
        bases: for each kind ("full_attention", ...) the key of its base in old files, and the default.
    """
    found = {}
    nested, scaling = (_object(settings, key) for key in ("rope_parameters", "rope_scaling"))
    for kind, (old, default) in bases.items():
        parameters = {**(nested.get(kind) or {}), **scaling}
        theta = parameters.get("rope_theta") or settings.get(old, default)
        found[kind] = float(theta), _scaling(settings, parameters)
    return found


def written_scaling(config: ModelConfig) -> dict[str, Any]:
    """`rope_type` and the numbers that go with it."""
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_type": "default"}
    values = {theirs: getattr(scaling, ours) for theirs, ours in SCALINGS[scaling.rope_type].items()}
    return {"rope_type": scaling.rope_type, **{key: value for key, value in values.items() if value is not None}}


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """The keys of both generations of transformers."""
    scaling = written_scaling(config)
    return {
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else scaling,
    }


def _parameters(settings: Settings) -> Mapping[str, Any]:
    # In this order transformers 5 looks for them too.
    return _object(settings, "rope_scaling") or _object(settings, "rope_parameters")


def _object(settings: Settings, key: str) -> Mapping[str, Any]:
    found = settings.get(key, {})
    if not isinstance(found, Mapping):
        settings.refuse(key, found, "an object")
        return {}
    return found


def _scaling(settings: Settings, parameters: Mapping[str, Any]) -> RopeScaling | None:
    partial = parameters.get("partial_rotary_factor", settings.get("partial_rotary_factor", 1.0))
    if partial != 1:
        settings.refuse("partial_rotary_factor", partial, "1.0: the whole head turns")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return None
    if kind not in SCALINGS:
        settings.refuse("rope_type", kind, " or ".join(map(repr, ["default", *SCALINGS])))
        return None
    values = {ours: parameters.get(theirs) for theirs, ours in SCALINGS[kind].items()}
    longest = settings.get("max_position_embeddings")
    if kind == "dynamic":  # transformers reads no other length for it
        values["original_max_position_embeddings"] = longest
    elif kind != "linear":
        values["original_max_position_embeddings"] = (
            settings.get(ORIGINAL) or values["original_max_position_embeddings"] or longest
        )
    if (
        values["factor"] is None
        and kind in ("yarn", "longrope")
        and longest
        and values["original_max_position_embeddings"]
    ):
        values["factor"] = longest / values["original_max_position_embeddings"]
    if kind == "yarn" and values["attention_factor"] is None:
        values["attention_factor"] = _yarn_factor(values["factor"], parameters)
    missing = [theirs for theirs, ours in SCALINGS[kind].items() if values[ours] is None and ours in _NEEDED]
    if missing:
        settings.problems.append(f"rope scaling of type {kind!r} lacks {', '.join(missing)}")
        return None
    return RopeScaling(rope_type=kind, **{name: value for name, value in values.items() if value is not None})


_NEEDED = {
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "short_factor",
    "long_factor",
}


def _yarn_factor(factor: float | None, parameters: Mapping[str, Any]) -> float | None:
    """DeepSeek's factor of cosines and sines from `mscale` and `mscale_all_dim`; None for the paper's."""
    mscale, all_dims = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if not (mscale and all_dims) or factor is None:
        return None
    grown = lambda scale: 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0  # noqa: E731
    return grown(mscale) / grown(all_dims)
