"""Perplexity and bits per byte of a model on a corpus or on text files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ingot.data.corpus.shards import Corpus
from ingot.data.loader.batch_sharding import check_corpora
from ingot.data.loader.reader import Reader, ReaderOptions
from ingot.data.sequences.objectives import MaskedLanguageModel
from ingot.launcher.config.aliases import modernize_manifest
from ingot.launcher.config.evaluate import EvaluateOptions
from ingot.launcher.inference.sliding_window import Window, disjoint_windows, micro_batches, sliding_windows
from ingot.launcher.inference.texts import TokenizedTexts, corpus_documents, read_texts, tokenize_as_in_corpus
from ingot.launcher.loading.language_model import load_for_inference
from ingot.launcher.runtime.device import in_dtype, open_device
from ingot.launcher.training.validation import perplexity, scores_of_losses, sum_losses, sum_losses_of_corpora
from ingot.parallel.checkpoint import CheckpointError, open_newest
from ingot.parallel.engines.engine import Batch

DEFAULT_LENGTH = 1024  # most tokens of a window, if neither the user nor the configuration of the run sets it


class Scorer:
    """Scores a model as the options say.

    Raises:
        ValueError: there is no such checkpoint or tokenizer, or the options do not fit the model.
    """

    def __init__(self, options: EvaluateOptions):
        self.options = options
        trained = training_config(options.checkpoint)
        device = open_device(options.device)
        model, self.tokenizer = load_for_inference(options.checkpoint, options.tokenizer, device)
        precision = trained.get("parallel", {}).get("precision")
        self.dtype = options.dtype or ("bfloat16" if precision == "bf16" else "float32")
        self.model, self.device = in_dtype(model, self.dtype), device
        self.causal = model.config.causal
        self.data = trained.get("data", {})
        length = options.sequence_length or self.data.get("sequence_length")
        self.length: int = length or min(model.config.max_position_embeddings, DEFAULT_LENGTH)
        self.seed = options.seed if options.seed is not None else trained.get("run", {}).get("seed", 1234)
        self.probability = options.mlm_probability or self.data.get("mlm_probability", 0.15)
        self._check()

    def _check(self) -> None:
        config = self.model.config
        problems = []
        if self.tokenizer.vocab_size > config.vocab_size:
            problems.append(
                f"the tokenizer {self.tokenizer.folder} has {self.tokenizer.vocab_size} ids, and the model has only "
                f"{config.vocab_size}; give the model's own tokenizer with --tokenizer"
            )
        if config.positions == "learned" and self.length > config.max_position_embeddings:
            problems.append(
                f"sequence_length {self.length} is more than the model's {config.max_position_embeddings} positions; "
                f"lower it"
            )
        stride = self.options.stride
        if stride is not None and stride > self.length:
            problems.append(f"stride {stride} would leave tokens out; it must be at most sequence_length {self.length}")
        if stride is not None and not self.causal:
            problems.append("stride is for causal models, and this model is masked; leave it out")
        if self.causal and (self.options.mlm_probability is not None or self.options.seed is not None):
            problems.append("mlm_probability and seed are for masked models, and this model is causal; leave them out")
        if problems:
            raise ValueError("; ".join(problems))

    def scores(self) -> dict:
        """The scores, with the names of the model and the data, as launcher/evaluate.py prints them.

        Raises:
            ValueError: the corpora do not fit the model, or there is nothing to score.
            OSError: a file cannot be read.
        """
        options = self.options
        head: dict[str, Any] = {
            "checkpoint": options.checkpoint,
            "kind": "causal" if self.causal else "masked",
            "dtype": self.dtype,
        }
        if options.corpus:
            head |= {"corpus": options.corpus, "split": options.split}
        else:
            head |= {"text": options.text}
        if not self.causal:
            head |= {"mlm_probability": self.probability, "seed": self.seed}
        if options.text:
            body = self._score_texts()
        elif options.stride is not None:
            body = self._score_documents(options.stride)
        else:
            body = self._score_sequences()
        return head | {"sequence_length": self.length} | body

    def _score_sequences(self) -> dict:
        """Scores the sequences that a training run would read; for a masked model with the run's rate of masks."""
        options, data = self.options, self.data
        corpora = self._corpora()
        most = options.max_samples or max(corpus.num_tokens for corpus in corpora) // self.length + 1
        size = min(options.batch_size, most)  # a larger batch would be filled up with rows of padding
        reader_options = ReaderOptions(
            sequence_length=self.length,
            objective="clm" if self.causal else "mlm",
            packing=data.get("packing", "concatenate"),
            mlm_probability=self.probability,
            mask_unit="token" if self.causal else data.get("mask_unit", "token"),
            sentence_pairs="none" if self.causal else data.get("sentence_pairs", "none"),
            fim_rate=data.get("fim_rate", 0.0) if self.causal else 0.0,
            global_batch=size,
            micro_batch=size,
            seed=self.seed,
            shuffle=False,
            threads=1,
            prefetch=2,
        )
        readers = [Reader([corpus], self.tokenizer, reader_options) for corpus in corpora]
        loss, num_targets, num_tokens = sum_losses_of_corpora(self._forward, readers, options.max_samples, self.device)
        for reader in readers:
            reader.close()
        scores = scores_of_losses(float(loss), num_targets, num_tokens, corpora, self.causal)
        how = f"sequences of {self.length} tokens as in training"
        return {"how": how + self._describe_masks(), "num_targets": num_targets, "num_tokens": sum(num_tokens)} | scores

    def _score_documents(self, stride: int) -> dict:
        """Scores the whole documents of corpora, in sliding windows. Their special tokens count as other tokens do."""
        corpora = self._corpora()
        documents = chain.from_iterable(corpus_documents(corpus) for corpus in corpora)
        windows = chain.from_iterable(sliding_windows(tokens, self.length, stride) for tokens in documents)
        loss, num_targets = self._sum_losses(windows)
        total = sum(corpus.num_tokens for corpus in corpora)
        entropy = sum(corpus.num_tokens * corpus.unigram_entropy for corpus in corpora) / total
        num_bytes = sum(corpus.text_bytes for corpus in corpora)
        how = self._describe_windows(stride, sum(corpus.num_documents for corpus in corpora))
        return self._result(how, stride, loss, num_targets, num_bytes) | {"unigram_entropy": entropy}

    def _score_texts(self) -> dict:
        """Scores the texts of files, in windows."""
        texts = read_texts(self.options.text)
        if not self.causal:
            tokenized = tokenize_as_in_corpus(texts, self.tokenizer)
            windows = chain.from_iterable(disjoint_windows(tokens, self.length) for tokens in tokenized)
            loss, num_targets = self._sum_losses(windows)
            how = f"documents split into parts of at most {self.length} tokens{self._describe_masks()}"
            return self._result(how, None, loss, num_targets, 0)
        stride = self.options.stride or max(1, self.length // 2)
        documents = TokenizedTexts(texts, self.tokenizer)
        windows = chain.from_iterable(sliding_windows(tokens, self.length, stride) for tokens in documents)
        loss, num_targets = self._sum_losses(windows)
        how = self._describe_windows(stride, documents.num_documents)
        return self._result(how, stride, loss, num_targets, documents.num_bytes)

    def _corpora(self) -> list[Corpus]:
        corpora = [Corpus.open(folder, self.options.split) for folder in self.options.corpus]
        check_corpora(corpora, self.tokenizer, self.length if self.options.stride is None else 1)
        return corpora

    def _sum_losses(self, windows: Iterator[Window]) -> tuple[float, int]:
        tokenizer, masks = self.tokenizer, None
        special = (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.mask_id)
        pad_id = next((i for i in special if i is not None), 0)
        if not self.causal:
            masks = MaskedLanguageModel(
                probability=self.probability,
                mask_id=tokenizer.mask_id,
                special_ids=tokenizer.special_ids,
                vocab_size=tokenizer.vocab_size,
                seed=self.seed,
            )
        batches = micro_batches(windows, self.length, self.options.batch_size, pad_id, masks)
        loss, num_targets = sum_losses(self._forward, batches, self.device)
        if not num_targets:
            raise ValueError(
                "there is nothing to score: no document has a token that can be predicted; give longer texts"
            )
        return float(loss), num_targets

    @torch.no_grad()
    def _forward(self, batch: Batch) -> torch.Tensor:
        return self.model(**batch)

    def _result(self, how: str, stride: int | None, loss_sum: float, num_targets: int, num_bytes: int) -> dict:
        loss = loss_sum / num_targets
        result: dict[str, Any] = {"how": how, "num_targets": num_targets, "loss": loss, "perplexity": perplexity(loss)}
        if num_bytes:
            result |= {"stride": stride, "num_bytes": num_bytes}
            result["bits_per_byte"] = loss_sum / math.log(2) / num_bytes
        return result

    def _describe_windows(self, stride: int, num_documents: int) -> str:
        return (
            f"{num_documents:,} documents in windows of {self.length} tokens, {stride} apart; each token is scored "
            f"once, after at least {self.length - stride} tokens of its document if there are so many"
        )

    def _describe_masks(self) -> str:
        if self.causal:
            return ""
        return (
            f", {self.probability:.4g} of the tokens as targets, chosen by seed {self.seed} (80 % of them masked, 10 % "
            "replaced, 10 % kept); not comparable with the perplexity of a causal model"
        )


def training_config(checkpoint: str) -> dict:
    """The configuration of the run that wrote a checkpoint; empty if the path is another kind of model."""
    try:
        return modernize_manifest(open_newest(Path(checkpoint))[1]).get("config", {})
    except CheckpointError:
        return {}
