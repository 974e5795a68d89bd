"""A SentencePiece model as a tokenizer of the library `tokenizers`, with the same ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NORMAL, USER_DEFINED = 1, 4  # kinds of pieces in sentencepiece_model.proto


def read_model(path: Path) -> Any:
    """The content of a tokenizer.model: a ModelProto of sentencepiece."""
    from sentencepiece import sentencepiece_model_pb2

    # The class is generated when the module is imported; type checkers do not see it.
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(path.read_bytes())
    return proto


def obstacles(proto: Any) -> list[str]:
    """What a model has that the conversion does not support; none for the models that are trained here."""
    normalizer = proto.normalizer_spec
    problems = {
        "a normalization table": bool(normalizer.precompiled_charsmap),
        "a dummy prefix (a space before each text)": normalizer.add_dummy_prefix,
        "removal of extra spaces": normalizer.remove_extra_whitespaces,
        "spaces that are not escaped": not normalizer.escape_whitespaces,
        f"a model of type {proto.trainer_spec.model_type}": proto.trainer_spec.model_type not in (1, 2),
    }
    return [what for what, is_so in problems.items() if is_so]


def convert(proto: Any, pieces: Sequence[str], special_ids: Sequence[int]) -> Any:
    """The same model in the library `tokenizers`: unigram with its scores, or BPE with its merges, best score first."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    unknown = proto.trainer_spec.unk_id
    if proto.trainer_spec.model_type == 1:
        vocabulary = [(piece, proto.pieces[i].score) for i, piece in enumerate(pieces)]
        model: models.Model = models.Unigram(vocabulary, unknown, byte_fallback=True)
    else:
        normal = {piece: proto.pieces[i].score for i, piece in enumerate(pieces) if proto.pieces[i].type == NORMAL}
        merges = [
            (-score, len(piece[:at]), piece[:at], piece[at:])
            for piece, score in normal.items()
            for at in range(1, len(piece))
            if piece[:at] in normal and piece[at:] in normal
        ]
        model = models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[(left, right) for *_, left, right in sorted(merges)],
            unk_token=pieces[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    converted = Tokenizer(model)
    converted.normalizer = normalizers.Replace(" ", "▁")
    whole = [re.escape(piece) for i, piece in enumerate(pieces) if proto.pieces[i].type == USER_DEFINED]
    if whole:  # pieces that SentencePiece never merges with others
        pattern = Regex("|".join(sorted(whole, key=len, reverse=True)))
        converted.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    converted.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    converted.add_special_tokens([AddedToken(pieces[i], normalized=False, special=True) for i in special_ids])
    return converted
