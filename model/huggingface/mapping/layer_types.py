"""`layer_types` of a config.json, and layer_pattern of a ModelConfig."""

from __future__ import annotations

from typing import Any

from ingot.model.config import ModelConfig
from ingot.model.huggingface.mapping.settings import Settings

NAMES = {"full_attention": "G", "sliding_attention": "L"}


def read_pattern(settings: Settings, default: list[str]) -> str:
    """The shortest pattern that tells which layers are local.

    Args:
        default: the types of the layers if the file does not list them.
    """
    types = settings.get("layer_types", default)
    if not isinstance(types, list) or any(str(each) not in NAMES for each in types) or len(types) < len(default):
        settings.refuse("layer_types", types, f"a list of {len(default)} names, each {' or '.join(NAMES)}")
        return "G"
    letters = "".join(NAMES[each] for each in types[: len(default)])
    for period in range(1, len(letters) + 1):
        if (letters[:period] * -(-len(letters) // period))[: len(letters)] == letters:
            return letters[:period]
    return "G"


def written_types(config: ModelConfig) -> list[str]:
    return [
        "sliding_attention" if config.is_local(layer) else "full_attention" for layer in range(config.num_hidden_layers)
    ]


def sliding_pattern(settings: Settings) -> dict[str, Any]:
    """layer_pattern and sliding_window from the settings of Qwen."""
    layers = settings.number("num_hidden_layers")
    window = settings.number("sliding_window", 4096) if settings.get("use_sliding_window", False) else None
    first = settings.number("max_window_layers", 28)
    local = lambda layer: window is not None and layer >= first  # noqa: E731
    pattern = read_pattern(settings, [list(NAMES)[local(layer)] for layer in range(layers)])
    if "L" in pattern and window is None:
        settings.refuse("use_sliding_window", False, "true, as layer_types has sliding_attention")
    return {"layer_pattern": pattern, "sliding_window": window if "L" in pattern else None}


def written_sliding(config: ModelConfig) -> dict[str, Any]:
    types = written_types(config)
    any_local = "sliding_attention" in types
    return {
        "use_sliding_window": any_local,
        "sliding_window": config.sliding_window if any_local else None,
        "max_window_layers": types.index("sliding_attention") if any_local else config.num_hidden_layers,
        "layer_types": types,
    }
