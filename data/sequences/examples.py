"""From the tokens of rows to what the model gets: the objective, put together from its parts.

A row comes as the corpus stores it, of whatever packing; what goes out depends on its tokens, the seed and the slot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ingot.data.sequences.fill_in_the_middle import FillInTheMiddle
from ingot.data.sequences.masking import word_starts
from ingot.data.sequences.objectives import IGNORE_INDEX, MaskedLanguageModel, clm, clm_rows
from ingot.data.sequences.packing import cumulative_lengths
from ingot.data.sequences.sentence_pairs import SentencePairs
from ingot.data.sequences.sentences import sentence_marks
from ingot.data.tokenizers.tokenizer import FIM_PIECES, Tokenizer


@dataclass(frozen=True)
class Objective:
    """What is predicted. `mask_unit` is token, word or span; `pairs` none, nsp or sop, with mlm; `fim_rate` the share
    of documents rearranged for fill-in-the-middle, with clm."""

    name: str = "clm"
    mlm_probability: float = 0.15
    mask_unit: str = "token"
    pairs: str = "none"
    fim_rate: float = 0.0

    def check(self) -> None:
        """Raises ValueError, with all that does not fit together."""
        problems = []
        if self.name not in ("clm", "mlm"):
            problems.append(f"objective {self.name!r} is unknown: choose clm or mlm")
        if self.name != "mlm" and (self.mask_unit != "token" or self.pairs != "none"):
            problems.append(f"mask_unit {self.mask_unit} and pairs {self.pairs} go with objective mlm only")
        if self.name != "clm" and self.fim_rate:
            problems.append(f"fim_rate {self.fim_rate} goes with objective clm only: set it to 0")
        if problems:
            raise ValueError("; ".join(problems))


@dataclass
class Rows:
    """Rows as read: tokens [B, row length], True where a document begins in them, tokens of each row before its padding
    (None: no padding), their slots, and how many of them, the first ones, are real."""

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray | None
    slots: np.ndarray
    num_real: int


class ExampleMaker:
    """Makes micro-batches of rows.

    `packed` says that rows come from best-fit packing: L tokens, with padding, instead of L + 1 without. `block` is
    what data.sentence_pairs.SentencePairs asks for.

    Raises ValueError for an objective that does not hold together, or a tokenizer that lacks what it takes.
    """

    def __init__(
        self, objective: Objective, tokenizer: Tokenizer, *, sequence_length: int, seed: int, packed: bool, block: int
    ):
        objective.check()
        self.objective, self.packed, self.sequence_length = objective, packed, sequence_length
        self.row_length = sequence_length + (not packed)
        self.pad_id = tokenizer.pad_id if tokenizer.pad_id is not None else 0
        self._eos_id = tokenizer.eos_id
        self._mlm = self._fim = self.pairs = None
        if objective.name == "mlm":
            begins = word_starts(tokenizer.pieces()) if objective.mask_unit != "token" else None
            if packed and tokenizer.pad_id is None:
                raise ValueError("best-fit packing with mlm needs a padding token, which the tokenizer lacks")
            common = {"special_ids": tokenizer.special_ids, "vocab_size": tokenizer.vocab_size, "seed": seed}
            self._mlm = MaskedLanguageModel(
                probability=objective.mlm_probability,
                mask_id=tokenizer.mask_id,
                unit=objective.mask_unit,
                is_word_start=begins,
                **common,
            )
            if objective.pairs != "none":
                self.pairs = SentencePairs(
                    kind=objective.pairs,
                    sequence_length=sequence_length,
                    cls_id=tokenizer.bos_id,
                    sep_id=tokenizer.eos_id,
                    pad_id=tokenizer.pad_id,
                    block=block,
                    marks=sentence_marks(tokenizer.pieces()),
                    **common,
                )
        if objective.fim_rate:
            prefix, middle, suffix = (tokenizer.find(piece) for piece in FIM_PIECES)
            self._fim = FillInTheMiddle(
                prefix_id=prefix,
                middle_id=middle,
                suffix_id=suffix,
                bos_id=tokenizer.bos_id,
                eos_id=tokenizer.eos_id,
                seed=seed,
                rate=objective.fim_rate,
            )

    def __call__(self, rows: Rows, partner: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
        """`input_ids`, `labels`, `positions` (int64 [B, L]) and `cu_seqlens` (int32), with pairs also `token_types`
        (int64 [B, L]) and `pair_labels` (int64 [B]). Rows that are not real have no targets.

        `partner` reads the row, (tokens, starts), that belongs to a row number of `rows` as the other half of a pair.
        """
        tokens, starts, lengths = rows.tokens.astype(np.int64), rows.starts, rows.lengths
        more = {}
        if self.pairs is not None:
            tokens, starts, more = self._pairs_of(rows, tokens, partner)
        elif self._fim is not None:
            tokens, starts, lengths = self._fim(tokens, starts, rows.slots, lengths)
        L = self.sequence_length
        if self._mlm is not None:
            tokens, starts = tokens[:, :L], starts[:, :L]
            input_ids, labels = self._mlm(tokens, rows.slots, starts)
        elif self.packed:
            input_ids, labels = clm_rows(tokens, starts, lengths)
        else:
            input_ids, labels = clm(tokens, starts, self._eos_id)
        labels[rows.num_real :] = IGNORE_INDEX
        cu_seqlens = cumulative_lengths(starts[:, :L])
        begins = np.repeat(cu_seqlens[:-1].astype(np.int64), np.diff(cu_seqlens))
        positions = np.subtract(np.arange(labels.size), begins, out=begins).reshape(labels.shape)
        return {"input_ids": input_ids, "labels": labels, "positions": positions, "cu_seqlens": cu_seqlens, **more}

    def _pairs_of(self, rows: Rows, tokens: np.ndarray, partner: Callable) -> tuple:
        L = self.sequence_length
        ids, types = np.empty((len(tokens), L), dtype=np.int64), np.zeros((len(tokens), L), dtype=np.int64)
        begins, labels = np.zeros((len(tokens), L), dtype=bool), np.full(len(tokens), IGNORE_INDEX, dtype=np.int64)
        for row, slot in enumerate(rows.slots.tolist()):
            mine = (tokens[row, :L], rows.starts[row, :L])
            other = mine
            if row < rows.num_real and self.pairs.partner(slot) != slot:
                other_tokens, other_starts = partner(row)
                other = (other_tokens[:L].astype(np.int64), other_starts[:L])
            ids[row], types[row], labels[row], begins[row] = self.pairs.build_pair(*mine, *other, slot)
        labels[rows.num_real :] = IGNORE_INDEX
        return ids, begins, {"token_types": types, "pair_labels": labels}
