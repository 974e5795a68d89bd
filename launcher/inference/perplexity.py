"""The scores of a model: opens it and what it is scored on, and says how that was done."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch

from ingot.data.corpus.shards import Corpus
from ingot.data.loader.batch_sharding import check_corpora
from ingot.data.loader.reader import Reader, ReaderOptions
from ingot.data.sequences.objectives import MaskedLanguageModel
from ingot.launcher.config.aliases import modernize_manifest
from ingot.launcher.config.evaluate import EvaluateOptions
from ingot.launcher.inference.sliding_window import Window, blocks_of, micro_batches, windows_of
from ingot.launcher.inference.texts import Texts, corpus_documents, framed, read_texts
from ingot.launcher.loading.language_model import load_for_inference
from ingot.launcher.runtime.device import in_dtype, open_device
from ingot.launcher.training.validation import corpus_sums, perplexity, scores_of, sums
from ingot.parallel.checkpoint import CheckpointError, read_manifest, resolve

LONGEST = 1024  # tokens of a window where neither the user nor a run's configuration says


class Scorer:
    """A model, ready to be scored as the options say.

    Raises:
        ValueError: no such checkpoint or tokenizer, or options that do not fit the model.
    """

    def __init__(self, options: EvaluateOptions):
        self.options = options
        self.trained = trained_with(options.checkpoint)
        device = open_device(options.device)
        model, self.tokenizer = load_for_inference(options.checkpoint, options.tokenizer, device)
        precision = self.trained.get("parallel", {}).get("precision")
        self.dtype = options.dtype or ("bfloat16" if precision == "bf16" else "float32")
        self.model, self.device = in_dtype(model, self.dtype), device
        self.causal = model.config.causal
        self.data = self.trained.get("data", {})
        self.length = options.sequence_length or self.data.get("sequence_length")
        self.length = self.length or min(model.config.max_position_embeddings, LONGEST)
        self.seed = options.seed if options.seed is not None else self.trained.get("run", {}).get("seed", 1234)
        self.probability = options.mlm_probability or self.data.get("mlm_probability", 0.15)
        self._check()

    def _check(self) -> None:
        config, problems = self.model.config, []
        if self.tokenizer.vocab_size > config.vocab_size:
            problems.append(
                f"the tokenizer {self.tokenizer.folder} has {self.tokenizer.vocab_size} ids and the model only "
                f"{config.vocab_size}; name the model's own with --tokenizer"
            )
        if config.positions == "learned" and self.length > config.max_position_embeddings:
            problems.append(
                f"sequence_length {self.length} is beyond the model's {config.max_position_embeddings} positions; shorten it"
            )
        stride = self.options.stride
        if stride is not None and stride > self.length:
            problems.append(f"stride {stride} would leave tokens out; it must be at most the {self.length} of a window")
        if stride is not None and not self.causal:
            problems.append("stride is for causal models; a masked one sees what is around each token anyway")
        if self.causal and (self.options.mlm_probability is not None or self.options.seed is not None):
            problems.append("mlm_probability and seed are for masked models, and this one is causal")
        if problems:
            raise ValueError("; ".join(problems))

    def scores(self) -> dict:
        """What launcher/evaluate.py prints."""
        options = self.options
        head = {"checkpoint": options.checkpoint, "kind": "causal" if self.causal else "masked", "dtype": self.dtype}
        if options.corpus:
            head |= {"corpus": options.corpus, "split": options.split}
        else:
            head |= {"text": options.text}
        if not self.causal:
            head |= {"mlm_probability": self.probability, "seed": self.seed}
        if options.text:
            body = self._of_texts()
        elif options.stride is not None:
            body = self._of_documents()
        else:
            body = self._as_in_training()
        return head | {"sequence_length": self.length} | body

    def _as_in_training(self) -> dict:
        """Over the sequences that a training run would cut and, for a masked model, with its masks."""
        options, data = self.options, self.data
        corpora = self._corpora()
        reader_options = ReaderOptions(
            sequence_length=self.length,
            objective="clm" if self.causal else "mlm",
            packing=data.get("packing", "concatenate"),
            mlm_probability=self.probability,
            mask_unit="token" if self.causal else data.get("mask_unit", "token"),
            sentence_pairs="none" if self.causal else data.get("sentence_pairs", "none"),
            fim_rate=data.get("fim_rate", 0.0) if self.causal else 0.0,
            global_batch=options.batch_size,
            micro_batch=options.batch_size,
            seed=self.seed,
            shuffle=False,
            threads=1,
            prefetch=2,
        )
        readers = [Reader([corpus], self.tokenizer, reader_options) for corpus in corpora]
        loss, num_targets, num_tokens = corpus_sums(self._forward, readers, options.max_samples, self.device)
        for reader in readers:
            reader.close()
        scores = scores_of(float(loss), num_targets, num_tokens, corpora, self.causal)
        how = f"sequences of {self.length} tokens as in training"
        return {"how": how + self._mask(), "num_targets": num_targets, "num_tokens": sum(num_tokens)} | scores

    def _of_documents(self) -> dict:
        """Over the whole documents of corpora, in windows. Their marks are tokens as others."""
        corpora, stride = self._corpora(), self.options.stride
        documents = chain.from_iterable(corpus_documents(corpus) for corpus in corpora)
        windows = chain.from_iterable(windows_of(tokens, self.length, stride) for tokens in documents)
        loss, num_targets = self._sums(windows)
        total = sum(corpus.num_tokens for corpus in corpora)
        entropy = sum(corpus.num_tokens * corpus.unigram_entropy for corpus in corpora) / total
        num_bytes = sum(corpus.text_bytes for corpus in corpora)
        how = self._windows(stride, sum(corpus.num_documents for corpus in corpora))
        return self._figures(how, stride, loss, num_targets, num_bytes) | {"unigram_entropy": entropy}

    def _of_texts(self) -> dict:
        """Over the text of files, in windows."""
        texts = read_texts(self.options.text)
        if not self.causal:
            blocks = (blocks_of(tokens, self.length) for tokens in framed(texts, self.tokenizer))
            loss, num_targets = self._sums(chain.from_iterable(blocks))
            how = f"documents cut into parts of at most {self.length} tokens{self._mask()}"
            return self._figures(how, None, loss, num_targets, 0)
        stride = self.options.stride or max(1, self.length // 2)
        documents = Texts(texts, self.tokenizer)
        windows = chain.from_iterable(windows_of(tokens, self.length, stride) for tokens in documents)
        loss, num_targets = self._sums(windows)
        how = self._windows(stride, documents.num_documents)
        return self._figures(how, stride, loss, num_targets, documents.num_bytes)

    def _corpora(self) -> list[Corpus]:
        corpora = [Corpus.open(folder, self.options.split) for folder in self.options.corpus]
        check_corpora(corpora, self.tokenizer, self.length if self.options.stride is None else 1)
        return corpora

    def _sums(self, windows: Iterator[Window]) -> tuple[float, int]:
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
        loss, num_targets = sums(self._forward, batches, self.device)
        if not num_targets:
            raise ValueError("there is nothing to score: no document has a token that could be predicted")
        return float(loss), num_targets

    @torch.no_grad()
    def _forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**batch)

    def _figures(self, how: str, stride: int | None, loss_sum: float, num_targets: int, num_bytes: int) -> dict:
        loss = loss_sum / num_targets
        figures = {"how": how, "num_targets": num_targets, "loss": loss, "perplexity": perplexity(loss)}
        if num_bytes:
            figures |= {"stride": stride, "num_bytes": num_bytes}
            figures["bits_per_byte"] = loss_sum / math.log(2) / num_bytes
        return figures

    def _windows(self, stride: int, num_documents: int) -> str:
        return (
            f"{num_documents:,} documents in windows of {self.length} tokens, {stride} apart, each token scored once "
            f"with at least {self.length - stride} before it in its document"
        )

    def _mask(self) -> str:
        if self.causal:
            return ""
        return (
            f", {self.probability:.4g} of the tokens as targets, which seed {self.seed} alone decides (80 % of them "
            "hidden, 10 % replaced, 10 % kept); not comparable with a causal model's perplexity"
        )


def trained_with(checkpoint: str) -> dict:
    """The configuration of the run that wrote a checkpoint; empty for what is none of ours."""
    try:
        return modernize_manifest(read_manifest(resolve(Path(checkpoint))))["config"]
    except (CheckpointError, KeyError):
        return {}
