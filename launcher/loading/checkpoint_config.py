"""What the manifest of a checkpoint says of its model, read like an option's value: with a type and a range."""

from pathlib import Path
from typing import TypeVar

from ingot.launcher.config.schema.values import Problem, build
from ingot.model.config import ModelConfig
from ingot.parallel.checkpoint import CheckpointError

T = TypeVar("T")


def model_config(folder: Path, manifest: dict) -> ModelConfig:
    """The configuration of the model of a checkpoint (of the base model if it is of a fine-tuning run).

    Args:
        manifest: with the option names of today.

    Raises:
        CheckpointError: it is not there, or is not one of a model.
    """
    values = manifest.get("model", manifest.get("config", {}).get("model"))
    config = read_config(ModelConfig, values, folder)
    try:
        config.validate()
    except ValueError as error:
        raise CheckpointError(f"checkpoint {folder} is of no model: {error}") from None
    return config


def read_config(cls: type[T], values: object, folder: Path) -> T:
    """An instance of a dataclass from the manifest of the checkpoint `folder`.

    Raises:
        CheckpointError: a value is missing, unknown or wrong.
    """
    if not isinstance(values, dict):
        raise CheckpointError(f"checkpoint {folder} does not say what it is of: its manifest has no {cls.__name__}")
    problems: list[Problem] = []
    try:
        found = build(cls, values, problems)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder} was made by another version of Ingot: {error}") from None
    if found is None:
        raise CheckpointError(f"checkpoint {folder} was made by another version of Ingot: {problems[0]}")
    return found
