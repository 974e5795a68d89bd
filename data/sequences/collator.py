"""From the tokens of rows to the model's input: the collator applies the objective to the rows of a micro-batch.

Rows come as the corpus stores them, with any packing. The result depends only on their tokens, the seed and the slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ingot.data.sequences.fill_in_the_middle import FillInTheMiddle
from ingot.data.sequences.masking import word_starts
from ingot.data.sequences.objectives import IGNORE_INDEX, MaskedLanguageModel, clm, clm_rows
from ingot.data.sequences.options import SequenceOptions
from ingot.data.sequences.packing import cumulative_lengths
from ingot.data.sequences.sentence_pairs import SentencePairs
from ingot.data.sequences.sentences import sentence_marks
from ingot.data.tokenizers.tokenizer import FIM_PIECES, Tokenizer

Partner = Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclass
class Rows:
    """Rows as they were read.

    Attributes:
        tokens: [B, row length].
        starts: bool [B, row length], True where a document begins.
        lengths: int64 [B], tokens of each row before its padding; None if rows have no padding.
        slots: int64 [B].
        num_real: the first `num_real` rows are real; the others are filler rows.
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray | None
    slots: np.ndarray
    num_real: int


class Collator:
    """Makes micro-batches from rows.

    With best-fit packing a row has L tokens, with padding. With concatenation it has L + 1 tokens, without padding.

    Args:
        partner_slots: see `SentencePairs`.

    Raises:
        ValueError: options that do not fit together, or a tokenizer that lacks a token that the objective needs.
    """

    def __init__(self, options: SequenceOptions, tokenizer: Tokenizer, *, seed: int, partner_slots: int):
        options.check()
        self.sequence_length = options.sequence_length
        self.packed = options.packing == "best_fit"
        self.row_length = options.sequence_length + (not self.packed)
        self.pad_id = tokenizer.pad_id if tokenizer.pad_id is not None else 0
        self._eos_id = tokenizer.eos_id
        self._one_document = not options.intra_document_masking
        if self.packed and options.objective == "mlm" and tokenizer.pad_id is None:
            raise ValueError(
                "best-fit packing with mlm needs a padding token, which the tokenizer lacks: use packing concatenate, "
                "or another tokenizer"
            )
        self._mlm = _masking(options, tokenizer, seed) if options.objective == "mlm" else None
        self.pairs = _pairs(options, tokenizer, seed, partner_slots) if options.sentence_pairs != "none" else None
        self._fim = _fill_in_the_middle(options, tokenizer, seed) if options.fim_rate else None

    def __call__(self, rows: Rows, partner: Partner) -> dict[str, np.ndarray]:
        """The micro-batch: `input_ids`, `labels`, `positions` (int64 [B, L]) and `cu_seqlens` (int32 [segments + 1]).

        With sentence pairs it also has `token_types` (int64 [B, L]) and `pair_labels` (int64 [B]). Filler rows have no
        targets.

        Args:
            partner: reads (tokens, starts) of the row that gives the second half of the pair of a row of `rows`.
        """
        tokens, starts, lengths = rows.tokens.astype(np.int64), rows.starts, rows.lengths
        more: dict[str, np.ndarray] = {}
        if self.pairs is not None:
            tokens, starts, more = self._build_pairs(self.pairs, rows, tokens, partner)
        elif self._fim is not None:
            tokens, starts, lengths = self._fim(tokens, starts, rows.slots, lengths)
        L = self.sequence_length
        documents = starts
        if self._one_document:
            starts = _starts_of_rows(starts, lengths)
        if self._mlm is not None:
            tokens, starts = tokens[:, :L], starts[:, :L]
            input_ids, labels = self._mlm(tokens, rows.slots, documents[:, :L])  # words end where documents end
        elif self.packed:
            assert lengths is not None
            input_ids, labels = clm_rows(tokens, starts, lengths)
        else:
            input_ids, labels = clm(tokens, starts, self._eos_id)
        labels[rows.num_real :] = IGNORE_INDEX
        cu_seqlens = cumulative_lengths(starts[:, :L])
        begins = np.repeat(cu_seqlens[:-1].astype(np.int64), np.diff(cu_seqlens))
        positions = np.subtract(np.arange(labels.size), begins, out=begins).reshape(labels.shape)
        return {"input_ids": input_ids, "labels": labels, "positions": positions, "cu_seqlens": cu_seqlens, **more}

    def _build_pairs(
        self, pairs: SentencePairs, rows: Rows, tokens: np.ndarray, partner: Partner
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        L = self.sequence_length
        ids, types = np.empty((len(tokens), L), dtype=np.int64), np.zeros((len(tokens), L), dtype=np.int64)
        begins, labels = np.zeros((len(tokens), L), dtype=bool), np.full(len(tokens), IGNORE_INDEX, dtype=np.int64)
        for row, slot in enumerate(rows.slots.tolist()):
            mine = (tokens[row, :L], rows.starts[row, :L])
            other = mine
            if row < rows.num_real and pairs.partner(slot) != slot:
                other_tokens, other_starts = partner(row)
                other = (other_tokens[:L].astype(np.int64), other_starts[:L])
            ids[row], types[row], labels[row], begins[row] = pairs.build_pair(*mine, *other, slot)
        labels[rows.num_real :] = IGNORE_INDEX
        return ids, begins, {"token_types": types, "pair_labels": labels}


def _starts_of_rows(starts: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """`starts` with one document in each row, and its padding, which no token may see."""
    places = np.arange(starts.shape[1])
    is_start = np.broadcast_to(places == 0, starts.shape)
    return is_start if lengths is None else is_start | (places == np.asarray(lengths)[:, None])


def _masking(options: SequenceOptions, tokenizer: Tokenizer, seed: int) -> MaskedLanguageModel:
    return MaskedLanguageModel(
        probability=options.mlm_probability,
        mask_id=tokenizer.mask_id,
        special_ids=tokenizer.special_ids,
        vocab_size=tokenizer.vocab_size,
        seed=seed,
        unit=options.mask_unit,
        is_word_start=word_starts(tokenizer.pieces()) if options.mask_unit != "token" else None,
    )


def _pairs(options: SequenceOptions, tokenizer: Tokenizer, seed: int, partner_slots: int) -> SentencePairs:
    return SentencePairs(
        kind=options.sentence_pairs,
        sequence_length=options.sequence_length,
        cls_id=tokenizer.bos_id,
        sep_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        special_ids=tokenizer.special_ids,
        vocab_size=tokenizer.vocab_size,
        seed=seed,
        partner_slots=partner_slots,
        marks=sentence_marks(tokenizer.pieces()),
    )


def _fill_in_the_middle(options: SequenceOptions, tokenizer: Tokenizer, seed: int) -> FillInTheMiddle:
    prefix, middle, suffix = (tokenizer.find(piece) for piece in FIM_PIECES)
    return FillInTheMiddle(
        prefix_id=prefix,
        middle_id=middle,
        suffix_id=suffix,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        seed=seed,
        rate=options.fim_rate,
    )
