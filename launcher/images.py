"""Writes images as texts of patch tokens, which everything else reads like text, and a tokenizer for them.

python launcher/images.py --images train-images.idx.gz --labels train-labels.idx.gz --output mnist/train.jsonl
python launcher/images.py --images test-images.idx.gz --labels test-labels.idx.gz --output mnist/test.jsonl
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run as a file
    import _clone  # noqa: F401

from ingot.launcher.config.parser import parse
from ingot.launcher.prepare import spread_lists
from ingot.launcher.runtime.exit_codes import DONE, bad_input, run_main

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


def write_images(options: ImageOptions) -> str:
    """Writes the file, and says what it holds.

    Raises:
        ValueError, OSError: files that cannot be read or do not fit together, or options that mean nothing.
    """
    import numpy as np

    from ingot.data.order.keyed_random import uniform
    from ingot.data.tokenizers.image_patches import (
        Codebook,
        load_codebook,
        moved,
        read_idx,
        save_codebook,
        words,
        write_tokenizer,
    )

    images = read_idx(options.images)
    if images.ndim != 3:
        raise ValueError(f"{options.images} has {images.ndim} dims; images have 3: number, height, width")
    labels = read_idx(options.labels) if options.labels is not None else None
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"{options.labels} has {len(labels)} labels, and {options.images} {len(images)} images")
    if labels is not None and labels.max() >= len(options.names):
        raise ValueError(f"the labels go up to {labels.max()}, and names are {len(options.names)}")
    if not 0 <= options.stretch < 1:
        raise ValueError(f"stretch is {options.stretch}; it must be at least 0 and below 1")
    for name, least in (("patch", 1), ("codes", 1), ("fit", 1), ("copies", 0), ("move", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"{name} is {getattr(options, name)}; it must be at least {least}")
    last = len(images) if options.count is None else options.first + options.count
    if not 0 <= options.first < last <= len(images):
        raise ValueError(
            f"first {options.first} and count {options.count} name no images of the {len(images)} in {options.images}"
        )
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    place = output.parent / "codebook.json"
    if place.exists():
        codebook = load_codebook(place)
    else:
        codebook = Codebook.fit(images[: options.fit], options.patch, options.codes, options.seed)
        write_tokenizer(output.parent / "tokenizer", len(codebook.centres), options.names)
        save_codebook(place, codebook)
        codebook = load_codebook(place)
    numbers = np.arange(options.first, last)
    images, labels = images[numbers], labels[numbers] if labels is not None else None
    temporary = output.with_name(output.name + ".tmp")
    with temporary.open("w") as file:
        for copy in range(options.copies + 1):
            seen = images
            if copy:
                draws = [uniform(options.seed, copy, number, numbers) for number in range(5)]
                draws_N5 = 2 * np.stack(draws, axis=1) - 1
                shift_N2 = (draws_N5[:, :2] * (options.move + 0.499)).round()
                turn_N, stretch_N2 = np.radians(options.turn) * draws_N5[:, 2], 1 + options.stretch * draws_N5[:, 3:]
                seen = moved(images, shift_N2, turn_N, stretch_N2)
            for number, codes in enumerate(codebook.encode(seen)):
                record = {"text": words(codes)}
                if labels is not None:
                    record |= {"label": int(labels[number]), "name": options.names[labels[number]]}
                file.write(json.dumps(record) + "\n")
    temporary.replace(output)
    back = codebook.decode(codebook.encode(images[:1000]), images.shape[2] // codebook.size)
    error = float(np.sqrt(np.mean((back.astype(float) - images[:1000]) ** 2)))
    return (
        f"{output}: {len(images) * (options.copies + 1):,} images of {codebook.encode(images[:1]).shape[1]} tokens, "
        f"{len(codebook.centres)} codes, root mean square error {error:.1f} of 255"
    )


def main(argv: list[str]) -> int:
    with bad_input():
        print(write_images(parse(ImageOptions, spread_lists(argv, ("names",)), __doc__)))
    return DONE


if __name__ == "__main__":
    run_main(main)
