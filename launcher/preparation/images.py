"""Writes images as texts of patch tokens: what launcher/images.py does."""

import json
from pathlib import Path

import numpy as np

from ingot.data.order.keyed_random import uniform
from ingot.data.tokenizers.image_patches import (
    Codebook,
    load_codebook,
    read_idx,
    save_codebook,
    text_of_codes,
    transform_images,
    write_tokenizer,
)
from ingot.launcher.config.images import ImageOptions


def write_images(options: ImageOptions) -> str:
    """Writes the file, and returns a line that describes it.

    Raises:
        ValueError, OSError: files that cannot be read or do not fit together, or options that do not fit the files.
    """
    images = read_idx(options.images)
    if images.ndim != 3:
        raise ValueError(f"{options.images} has {images.ndim} dimensions; images have 3: number, height, width")
    labels = read_idx(options.labels) if options.labels is not None else None
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"{options.labels} has {len(labels)} labels, and {options.images} {len(images)} images")
    if labels is not None and labels.max() >= len(options.names):
        raise ValueError(
            f"the labels go up to {labels.max()}, and there are {len(options.names)} names: name each label"
        )
    last = len(images) if options.count is None else options.first + options.count
    if not 0 <= options.first < last <= len(images):
        raise ValueError(
            f"first {options.first} and count {options.count} name no images of the {len(images)} in {options.images}"
        )
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    codebook_path = output.parent / "codebook.json"
    if codebook_path.exists():
        codebook = load_codebook(codebook_path)
    else:
        codebook = Codebook.fit(images[: options.fit], options.patch, options.codes, options.seed)
        write_tokenizer(output.parent / "tokenizer", len(codebook.centres), options.names)
        save_codebook(codebook_path, codebook)
        codebook = load_codebook(codebook_path)
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
                seen = transform_images(images, shift_N2, turn_N, stretch_N2)
            for number, codes in enumerate(codebook.encode(seen)):
                record: dict[str, str | int] = {"text": text_of_codes(codes)}
                if labels is not None:
                    record |= {"label": int(labels[number]), "name": options.names[labels[number]]}
                file.write(json.dumps(record) + "\n")
    temporary.replace(output)
    decoded = codebook.decode(codebook.encode(images[:1000]), images.shape[2] // codebook.size)
    error = float(np.sqrt(np.mean((decoded.astype(float) - images[:1000]) ** 2)))
    return (
        f"{output}: {len(images) * (options.copies + 1):,} images of {codebook.encode(images[:1]).shape[1]} tokens, "
        f"{len(codebook.centres)} codes, root mean square error {error:.1f} of 255"
    )
