"""The tokenizer of a checkpoint."""

from pathlib import Path

from ingot.data.tokenizers.tokenizer import Tokenizer, load_tokenizer


def open_tokenizer(folder: Path, manifest: dict, path: str | None) -> Tokenizer:
    """The tokenizer of a checkpoint, from `path` or from the run's folder.

    Raises:
        ValueError: there is none, or it is not the one that the checkpoint was trained with.
    """
    found = load_tokenizer(path if path is not None else folder.parents[1] / "tokenizer")
    if found.sha256 != manifest.get("tokenizer_sha256", found.sha256):
        raise ValueError(
            f"tokenizer {found.folder} is not the one that {folder} was trained with; name that one with --tokenizer"
        )
    return found
