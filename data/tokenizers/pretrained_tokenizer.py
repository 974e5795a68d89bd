"""Tokenizers that `transformers` opens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np

from ingot.data.tokenizers.checked_files import check_files, library_errors
from ingot.data.tokenizers.identity import encoding_hash
from ingot.data.tokenizers.segments import can_be_divided, segments
from ingot.data.tokenizers.tokenizer import (
    Template,
    Tokenizer,
)


class PretrainedTokenizer(Tokenizer):
    """A folder that `transformers.AutoTokenizer` opens. Nothing is downloaded, and none of its code is executed."""

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        super().__init__(folder)
        check_files(self.files)
        try:
            with library_errors(folder):
                self._tokenizer = tokenizer = AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False, use_fast=True
                )
        except Exception as error:  # transformers raises many classes here
            raise ValueError(f"the tokenizer in {folder} cannot be opened by transformers: {error}") from error
        self.class_name = type(tokenizer).__name__
        # The library counts the tokens; where ids are left out the highest one is larger than that.
        self.vocab_size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
        first = lambda *ids: next((i for i in ids if i is not None), None)  # noqa: E731
        self.bos_id = first(tokenizer.bos_token_id, tokenizer.cls_token_id)
        self.eos_id = first(tokenizer.eos_token_id, tokenizer.sep_token_id)
        self.pad_id, self.mask_id = tokenizer.pad_token_id, tokenizer.mask_token_id
        self.special_ids = frozenset(tokenizer.all_special_ids)
        template = tokenizer.chat_template  # of several by name, the default one
        self.chat_template = template.get("default") if isinstance(template, dict) else template

    @cached_property
    def encoding_sha256(self) -> str:
        if (backend := getattr(self._tokenizer, "backend_tokenizer", None)) is None:  # one without a tokenizer.json
            return self.old_sha256
        return encoding_hash(json.loads(backend.to_str()), self.bos_id, self.eos_id, self.mask_id)

    @property
    def named_tokens(self) -> dict[str, str]:
        named = self._tokenizer.special_tokens_map
        return {name: str(token) for name, token in named.items() if not isinstance(token, list | tuple)}

    @cached_property
    def special_pieces(self) -> dict[str, int]:
        added = self._tokenizer.added_tokens_decoder
        return super().special_pieces | {token.content: i for i, token in sorted(added.items()) if token.special}

    def encode_templates(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        if not self._tokenizer.is_fast or not texts:
            return super().encode_templates(texts)
        return self._with_offsets(texts, split_special_tokens=False)

    def pieces(self) -> list[str]:
        return cast("list[str]", self._tokenizer.convert_ids_to_tokens(list(range(self.vocab_size))))

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        return self._with_offsets(texts) if texts else []

    def _with_offsets(self, texts: Sequence[str], **options: bool) -> list[tuple[list[int], np.ndarray]]:
        found = self._encode(texts, return_offsets_mapping=True, **options)
        offsets = [np.array(each, dtype=np.int64).reshape(-1, 2) for each in found["offset_mapping"]]
        return list(zip(found["input_ids"], offsets, strict=True))

    def _encode(self, texts: Sequence[str], **options: bool) -> Mapping[str, list]:
        plain = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False}
        with library_errors(self.folder):
            return self._tokenizer(list(texts), verbose=False, **{**plain, **options})

    def template(self, pair: bool) -> Template:
        # Tokenizers configure their special tokens in many ways. A short text shows them.
        first, second = self.encode_batch(["a", "b"])
        found = self._tokenizer("a", "b" if pair else None, return_token_type_ids=True, verbose=False)
        ids, types = found["input_ids"], found.get("token_type_ids")
        begin = _find(ids, first, 0)
        end = begin + len(first)
        if not pair:
            return Template(tuple(ids[:begin]), (), tuple(ids[end:]), 0)
        at = _find(ids, second, end)
        rest = at + len(second)
        return Template(tuple(ids[:begin]), tuple(ids[end:at]), tuple(ids[rest:]), types[at] if types else 0)

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        # `threads` has no effect: the library itself uses all cores for a batch.
        if not texts:
            return []
        return self._encode(texts)["input_ids"]

    def encode_arrays(self, texts: Sequence[str], dtype: np.dtype, threads: int = 1) -> list[np.ndarray]:
        divide = segments if can_be_divided(self._tokenizer) else lambda text: [text]
        return self._encode_in_parts(texts, divide, dtype, threads)

    def _decode(self, ids: list[int]) -> str:
        with library_errors(self.folder):
            text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cast("str", text)


def _find(ids: list[int], part: list[int], begin: int) -> int:
    """The first index of `part` in `ids`, from `begin` on."""
    return next(i for i in range(begin, len(ids)) if ids[i : i + len(part)] == part)
