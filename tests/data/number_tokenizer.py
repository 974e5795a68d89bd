"""What stands in for a tokenizer where documents are numbers, and no text is encoded."""

from types import SimpleNamespace


def number_tokenizer(vocab_size: int, *, bos_id: int, eos_id: int, pad_id: int, mask_id: int) -> SimpleNamespace:
    """What `CorpusWriter` and `Reader` use of a tokenizer."""
    return SimpleNamespace(
        files_sha256="0" * 64,
        encoding_sha256="0" * 64,
        vocab_size=vocab_size,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        mask_id=mask_id,
        special_ids=frozenset({bos_id, eos_id, pad_id, mask_id}),
    )
