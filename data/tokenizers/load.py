"""From what a user names as a tokenizer to the tokenizer."""

from contextlib import ExitStack
from pathlib import Path

from ingot.data.tokenizers.pretrained_tokenizer import PretrainedTokenizer
from ingot.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from ingot.data.tokenizers.sources import tokenizer_folder
from ingot.data.tokenizers.tokenizer import TOKENIZER_FILES, Tokenizer, tokenizer_files


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Open a tokenizer.

    Args:
        source: a folder; as a text also a name on the hub; a file, or a folder of bare files (see sources.py).

    Raises:
        ValueError: there is no tokenizer, or one that cannot be read, or whose kind is not known.
    """
    made = tokenizer_folder(source, TOKENIZER_FILES)
    if made is None:
        return _open_folder(Path(source))
    with ExitStack() as stack:
        tokenizer = _open_folder(Path(stack.enter_context(made)))
        tokenizer.keep = stack.pop_all()
    return tokenizer


def _open_folder(folder: Path) -> Tokenizer:
    names = {file.name for file in tokenizer_files(folder)}
    if names & {"tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt"}:
        return PretrainedTokenizer(folder)
    if "tokenizer.model" in names:
        try:
            return SentencePieceTokenizer(folder)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{folder / 'tokenizer.model'} is not a readable SentencePiece model: {error}; if it is a list of byte "
                f"sequences (tiktoken, as of Llama 3), take the tokenizer.json of the same model"
            ) from error
    if (folder / "tokenizer").is_dir() and tokenizer_files(folder / "tokenizer"):
        return _open_folder(folder / "tokenizer")  # a corpus or a run of Ingot
    raise ValueError(
        f"{folder} has no tokenizer: expected a SentencePiece tokenizer.model, or the files of a transformers "
        f"tokenizer (tokenizer.json, tokenizer_config.json, ...)"
    )
