"""Rotary positions in a config.json: `rope_parameters` of transformers 5, `rope_theta` and `rope_scaling` of earlier
versions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from ingot.model.config import ModelConfig, RopeScaling, Scaling
from ingot.model.huggingface.mapping.settings import Settings

ORIGINAL = "original_max_position_embeddings"
SCALINGS = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        ORIGINAL: ORIGINAL,
    },
    "yarn": {
        "factor": "factor",
        ORIGINAL: ORIGINAL,
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
    },
    "longrope": {
        "factor": "factor",
        ORIGINAL: ORIGINAL,
        "attention_factor": "attention_factor",
        "short_factor": "short_factor",
        "long_factor": "long_factor",
    },
}
"""For each rope_type: keys of config.json and fields of `RopeScaling`."""
FIELDS_OF_TYPE = {kind: {*keys.values(), *([ORIGINAL] if kind != "linear" else [])} for kind, keys in SCALINGS.items()}
"""The fields of `RopeScaling` that each rope_type uses."""


def read_rope(settings: Settings, default_theta: float = 10000.0) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a model with the same rotary positions in all layers."""
    parameters = _parameters(settings)
    if any(isinstance(value, Mapping) for value in parameters.values()):
        settings.refuse("rope_parameters", parameters, "one set for all layers")
        parameters = {}
    return {
        "rope_theta": _theta(settings, parameters, "rope_theta", default_theta),
        "rope_scaling": _scaling(settings, parameters),
    }


def read_rope_by_layer_type(
    settings: Settings, bases: Mapping[str, tuple[str, float]]
) -> dict[str, tuple[float, RopeScaling | None]]:
    """`rope_theta` and `rope_scaling` of each type of layer (ModernBERT).

    Args:
        bases: for each type ("full_attention", ...) the key of its base in old files, and the default.
    """
    found = {}
    nested, scaling = (_object(settings, key) for key in ("rope_parameters", "rope_scaling"))
    for kind, (old, default) in bases.items():
        own = nested.get(kind) or {}
        if not isinstance(own, Mapping):
            settings.refuse(f"rope_parameters.{kind}", own, "an object")
            own = {}
        parameters = {**own, **scaling}
        found[kind] = _theta(settings, parameters, old, default), _scaling(settings, parameters)
    return found


def written_scaling(config: ModelConfig) -> dict[str, Any]:
    """`rope_type` and its parameters."""
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_type": "default"}
    values = {theirs: getattr(scaling, ours) for theirs, ours in SCALINGS[scaling.rope_type].items()}
    return {"rope_type": scaling.rope_type, **{key: value for key, value in values.items() if value is not None}}


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """The keys of transformers 5 and of earlier versions."""
    scaling = written_scaling(config)
    return {
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else scaling,
    }


def _parameters(settings: Settings) -> Mapping[str, Any]:
    # transformers 5 looks for them in the same order.
    return _object(settings, "rope_scaling") or _object(settings, "rope_parameters")


def _object(settings: Settings, key: str) -> Mapping[str, Any]:
    found = settings.get(key, {})
    if not isinstance(found, Mapping):
        settings.refuse(key, found, "an object")
        return {}
    return found


def _theta(settings: Settings, parameters: Mapping[str, Any], old: str, default: float) -> float:
    """The base, from the parameters or from the key `old` of earlier versions."""
    theta = parameters.get("rope_theta") or settings.get(old, default)
    if not _is_number(theta):
        settings.refuse("rope_theta" if parameters.get("rope_theta") else old, theta, "a number")
        return default
    return float(theta)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _checked(settings: Settings, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters whose values have the type that they should have; each other one is a problem."""
    checked = dict(parameters)
    for key, value in parameters.items():
        if key in _LISTS:
            right, kind = isinstance(value, list) and all(map(_is_number, value)), "a list of numbers"
        elif key in ("rope_type", "type"):
            right, kind = isinstance(value, str), "a name"
        else:
            right, kind = _is_number(value), "a number"
        if key in _READ and value is not None and not right:
            settings.refuse(f"rope_scaling.{key}", value, kind)
            del checked[key]
    return checked


def _scaling(settings: Settings, parameters: Mapping[str, Any]) -> RopeScaling | None:
    parameters = _checked(settings, parameters)
    partial = parameters.get("partial_rotary_factor", settings.get("partial_rotary_factor", 1.0))
    if partial != 1:
        settings.refuse("partial_rotary_factor", partial, "1.0: the whole head is rotated")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return None
    if kind not in SCALINGS:
        settings.refuse("rope_type", kind, " or ".join(map(repr, ["default", *SCALINGS])))
        return None
    values = {ours: parameters.get(theirs) for theirs, ours in SCALINGS[kind].items()}
    longest = settings.number("max_position_embeddings", 0) or None
    if kind == "dynamic":  # transformers uses no other length for it
        values[ORIGINAL] = longest
    elif kind != "linear":
        values[ORIGINAL] = settings.number(ORIGINAL, 0) or values[ORIGINAL] or longest
    original = values.get(ORIGINAL)
    if values["factor"] is None and kind in ("yarn", "longrope") and longest and original:
        values["factor"] = longest / original
    if kind == "yarn" and values["attention_factor"] is None:
        values["attention_factor"] = _yarn_factor(values["factor"], parameters)
    missing = [theirs for theirs, ours in SCALINGS[kind].items() if values[ours] is None and ours in _REQUIRED]
    if missing:
        settings.problems.append(f"rope_scaling of rope_type {kind!r} lacks {', '.join(missing)}")
        return None
    given = {name: value for name, value in values.items() if value is not None}
    return RopeScaling(rope_type=cast(Scaling, kind), **given)


_LISTS = ("short_factor", "long_factor")
_READ = {"rope_type", "type", "partial_rotary_factor", "mscale", "mscale_all_dim"}
_READ |= {key for keys in SCALINGS.values() for key in keys} - {"truncate"}
_REQUIRED = {"factor", "low_freq_factor", "high_freq_factor", ORIGINAL, "short_factor", "long_factor"}


def _yarn_factor(factor: float | None, parameters: Mapping[str, Any]) -> float | None:
    """DeepSeek's factor of cosines and sines from `mscale` and `mscale_all_dim`; None for the factor of the paper."""
    mscale, all_dims = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if not (mscale and all_dims) or factor is None:
        return None
    logarithm = math.log(factor) if factor > 1 else 0.0
    return (0.1 * mscale * logarithm + 1) / (0.1 * all_dims * logarithm + 1)
