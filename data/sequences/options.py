"""The options that say what a sequence is: its length, how documents are packed, and what the model predicts."""

from __future__ import annotations

from dataclasses import dataclass

OBJECTIVES = ("clm", "mlm")
PACKINGS = ("concatenate", "best_fit")


@dataclass(frozen=True, kw_only=True)
class SequenceOptions:
    """The names are those of the section `data` of a configuration.

    Attributes:
        sequence_length: tokens of a row of the model's input.
        objective: clm (next-token prediction) or mlm (masked prediction).
        packing: concatenate or best_fit, see data/sequences/packings.py.
        mlm_probability: share of the tokens that mlm masks.
        mask_unit: what mlm masks at once: token, word or span.
        sentence_pairs: none, nsp or sop; only with mlm.
        fim_rate: share of the documents that are rearranged for fill-in-the-middle; only with clm.
        intra_document_masking: False ignores where documents end in a row: the tokens of a row are one document. Not
            with sentence pairs, which are one document already.
    """

    sequence_length: int
    objective: str = "clm"
    packing: str = "concatenate"
    mlm_probability: float = 0.15
    mask_unit: str = "token"
    sentence_pairs: str = "none"
    fim_rate: float = 0.0
    intra_document_masking: bool = True

    def check(self) -> None:
        """Raises ValueError that lists every option that is unknown or does not fit the others."""
        problems = []
        if self.sequence_length < 1:
            problems.append(f"sequence_length must be positive, is {self.sequence_length}")
        if self.objective not in OBJECTIVES:
            problems.append(f"objective {self.objective!r} is unknown: choose one of {', '.join(OBJECTIVES)}")
        if self.packing not in PACKINGS:
            problems.append(f"packing {self.packing!r} is unknown: choose one of {', '.join(PACKINGS)}")
        if self.objective != "mlm" and (self.mask_unit != "token" or self.sentence_pairs != "none"):
            problems.append(
                f"mask_unit {self.mask_unit} and sentence_pairs {self.sentence_pairs} need objective mlm: set the "
                f"objective to mlm, or mask_unit to token and sentence_pairs to none"
            )
        if self.objective != "clm" and self.fim_rate:
            problems.append(f"fim_rate {self.fim_rate} needs objective clm: set fim_rate to 0")
        if self.sentence_pairs != "none" and not self.intra_document_masking:
            problems.append(
                f"sentence_pairs {self.sentence_pairs} makes one document of each row: set intra_document_masking to "
                f"true, or sentence_pairs to none"
            )
        if problems:
            raise ValueError("; ".join(problems))
