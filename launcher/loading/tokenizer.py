"""The tokenizer of a checkpoint."""

from pathlib import Path

from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer


def open_tokenizer(folder: Path, manifest: dict, path: str | None) -> Tokenizer:
    """The tokenizer of a checkpoint, from `path` or from the run's folder.

    Raises:
        ValueError: there is none, or it is not the one that the checkpoint was trained with.
    """
    own = folder.parents[1] / "tokenizer"
    found = load_tokenizer(path if path is not None else own)
    if own.is_dir():
        found.settings_folder = own
    if "tokenizer_sha256" not in manifest or _is_named(found, manifest):
        return found
    if path is not None and own.is_dir():  # of an older checkpoint, only the run's own tokenizer says what it is
        original = load_tokenizer(own)
        if original.sha256 == found.sha256 and _is_named(original, manifest):
            return found
        if original.encoding_sha256 == found.encoding_sha256:
            raise ValueError(
                f"tokenizer {found.folder} has another chat template than the one that {folder} was trained with; "
                f"name that one with --tokenizer, or leave it out"
            )
    raise ValueError(
        f"tokenizer {found.folder} is not the one that {folder} was trained with; name that one with --tokenizer"
    )


def _is_named(tokenizer: Tokenizer, manifest: dict) -> bool:
    """Whether a checkpoint names a tokenizer: by what it is or by its files, an older one by the files of then."""
    if "tokenizer_files_sha256" not in manifest:
        return manifest["tokenizer_sha256"] in (tokenizer.old_sha256, tokenizer.sha256)
    named = manifest["tokenizer_sha256"], manifest["tokenizer_files_sha256"]
    return tokenizer.files_sha256 in named or tokenizer.sha256 in named
