"""Options of launcher/images.py."""

from dataclasses import dataclass, field
from typing import Annotated

from ingot.launcher.config.schema.types import (
    NonNegativeCount,
    PositiveCount,
    Range,
    Seed,
    Size,
    UnitIntervalBelowOne,
)

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class ImageOptions:
    """The images, and how they are split into patches."""

    images: str
    """File of images in the idx format, plain or .gz."""
    output: str
    """File for the texts, .jsonl: text, label, and the label's name. The codebook and the tokenizer are written to its
    folder; if they are there already, they are used."""
    labels: str | None = None
    """File of their labels in the idx format."""
    patch: Size = 4
    """Width and height of a patch in pixels."""
    codes: Size = 512
    """Maximum number of patches in the codebook."""
    fit: Size = 10_000
    """Number of images from which the codebook is made."""
    copies: NonNegativeCount = 0
    """Number of copies of each image that are added. Each copy is moved, turned and stretched a little."""
    move: Annotated[int, Range(0, 1000)] = 1
    """Maximum distance in pixels by which a copy is moved, in each direction."""
    turn: Annotated[float, Range(0, 360)] = 0.0
    """Maximum angle in degrees by which a copy is turned, in each direction."""
    stretch: UnitIntervalBelowOne = 0.0
    """Maximum share by which height and width of a copy grow or shrink, independently."""
    first: NonNegativeCount = 0
    """Index of the first image to write."""
    count: PositiveCount | None = None
    """Number of images to write; by default all from first on. With first it splits a file, for example to hold out the
    last 5,000."""
    names: list[str] = field(default_factory=lambda: list(NAMES))
    """Names of the labels 0, 1, ..."""
    seed: Seed = 1234
    """Seed of the codebook and of the copies."""
