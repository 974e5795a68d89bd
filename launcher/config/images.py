"""What launcher/images.py can be told."""

from dataclasses import dataclass, field

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass
class ImageOptions:
    """What to read, and how images are cut."""

    images: str
    """File of images in the idx format, plain or .gz."""
    output: str
    """File for the texts, .jsonl: text, label, and the label's name. Its folder gets the codebook and the tokenizer, or
    has them already, of a file before."""
    labels: str | None = None
    """File of their labels in the idx format."""
    patch: int = 4
    """Width and height of a patch in pixels."""
    codes: int = 512
    """Patches of the codebook at most."""
    fit: int = 10_000
    """Images that the codebook is made from."""
    copies: int = 0
    """Copies of each image that are added, each moved, turned and stretched a little."""
    move: int = 1
    """Pixels by which a copy is moved at most, each way."""
    turn: float = 0.0
    """Degrees by which a copy is turned at most, each way."""
    stretch: float = 0.0
    """Share by which a copy's height and width, each for itself, grow or shrink at most."""
    first: int = 0
    """Number of the first image that is written: the last 5,000 can be held out, to choose settings by."""
    count: int | None = None
    """Images that are written, all from the first on by default: for few labels, or to hold some out."""
    names: list[str] = field(default_factory=lambda: list(NAMES))
    """Names of the labels 0, 1, ..."""
    seed: int = 1234
    """Of the codebook and of the copies."""
