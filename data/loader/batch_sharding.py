"""Checks before reading: a batch can be divided among the ranks, and the corpora can be read together."""

from __future__ import annotations

from collections.abc import Sequence

from ingot.data.corpus.shards import Corpus
from ingot.data.sequences.packing import count_instances
from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer


def check_batch_sizes(global_batch: int, micro_batch: int, num_ranks: int) -> None:
    """Raises ValueError unless `num_ranks` divides `global_batch`, and `micro_batch` divides the part of each rank.

    The message names the nearest numbers that are possible."""
    if min(global_batch, micro_batch, num_ranks) < 1:
        raise ValueError(f"global batch ({global_batch}), micro-batch ({micro_batch}) and data ranks must be positive")
    if global_batch % num_ranks:
        below, above = global_batch // num_ranks * num_ranks, -(-global_batch // num_ranks) * num_ranks
        sizes = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"a global batch of {global_batch} sequences cannot be divided among {num_ranks} data ranks: use a "
            f"global batch of {sizes}, or {_nearest_divisors(global_batch, num_ranks)} data ranks"
        )
    per_rank = global_batch // num_ranks
    if per_rank % micro_batch:
        raise ValueError(
            f"a micro-batch of {micro_batch} sequences does not divide the {per_rank} sequences of each rank (global "
            f"batch {global_batch} over {num_ranks} data ranks): use a micro-batch of "
            f"{_nearest_divisors(per_rank, micro_batch)}"
        )


def _nearest_divisors(number: int, wanted: int) -> str:
    """The divisors of `number` next to `wanted`, below and above: "4 or 8"."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    near = [
        max((d for d in divisors if d <= wanted), default=None),
        min((d for d in divisors if d >= wanted), default=None),
    ]
    return " or ".join(str(d) for d in near if d is not None)


def check_corpora(corpora: Sequence[Corpus], tokenizer: Tokenizer, sequence_length: int) -> None:
    """Raises ValueError unless all corpora were made with `tokenizer` and hold at least one sequence each."""
    if not corpora:
        raise ValueError("no corpus to read: name at least one")
    if sequence_length < 1:
        raise ValueError(f"sequence_length must be positive, is {sequence_length}")
    for corpus in corpora:
        if not _encodes_alike(corpus, tokenizer):
            raise ValueError(
                f"corpus {corpus.folder} was made with another tokenizer (of its files: {corpus.tokenizer_sha256[:16]})"
                f" than {tokenizer.folder} ({tokenizer.files_sha256[:16]}), which gives other ids: prepare it with "
                f"--tokenizer.path {tokenizer.folder}"
            )
        if corpus.vocab_size != tokenizer.vocab_size:
            raise ValueError(
                f"corpus {corpus.folder} says that its vocabulary has {corpus.vocab_size} ids, and its tokenizer has "
                f"{tokenizer.vocab_size}: prepare it again"
            )
        if not count_instances(corpus.num_tokens, sequence_length):
            raise ValueError(
                f"corpus {corpus.folder}, split {corpus.split}, has {corpus.num_tokens} tokens, and one sequence needs "
                f"{sequence_length + 1}: use a sequence_length of at most {max(1, corpus.num_tokens - 1)}"
            )


def _encodes_alike(corpus: Corpus, tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is the one of a corpus, or gives the same ids for every text.

    The manifest of an older corpus knows only the files of its tokenizer; and another version of transformers may build
    another tokenizer from the same files. Then the corpus's own tokenizer, if it is unchanged, is compared.
    """
    if corpus.tokenizer_sha256 == tokenizer.files_sha256 or corpus.encoding_sha256 == tokenizer.encoding_sha256:
        return True
    own = load_tokenizer(corpus.tokenizer_folder)
    return own.files_sha256 == corpus.tokenizer_sha256 and own.encoding_sha256 == tokenizer.encoding_sha256
